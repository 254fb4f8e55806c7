package jobs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// casPrefix begins the virtual attributes: they tell a file's state and take
// orders, and are never listed, so that rsync -X, cp -a and tar --xattrs do not copy them.
const casPrefix = "user.cas."

// Getxattr returns users' attributes and the virtual user.cas.* ones. Errors: catalog.ErrNoAttr.
func (e *Engine) Getxattr(ctx context.Context, ino uint64, name string) ([]byte, error) {
	if what, ok := strings.CutPrefix(name, casPrefix); ok {
		s, err := e.casAttr(ctx, ino, what)
		return []byte(s), err
	}
	var b []byte
	err := e.catalog.View(func(tx *catalog.Tx) error {
		var err error
		b, err = tx.Xattr(ino, name)
		return err
	})
	return b, err
}

// casAttr is one virtual attribute; those that do not apply now are absent.
func (e *Engine) casAttr(ctx context.Context, ino uint64, what string) (string, error) {
	some := func(s string) (string, error) {
		if s == "" {
			return "", catalog.ErrNoAttr
		}
		return s, nil
	}
	when := func(t *time.Time) (string, error) {
		if t == nil {
			return "", catalog.ErrNoAttr
		}
		return t.UTC().Format(time.RFC3339), nil
	}
	switch what {
	case "name", "qcs", "creation-date", "last-inventory-date", "number-of-archives", "size":
		var v catalog.Vault
		err := e.catalog.View(func(tx *catalog.Tx) error {
			var err error
			v, err = tx.Vault(ino)
			return err
		})
		if err != nil {
			return "", catalog.ErrNoAttr
		}
		date := func(ns int64) (string, error) {
			if ns == 0 {
				return "", catalog.ErrNoAttr
			}
			return time.Unix(0, ns).UTC().Format(time.RFC3339), nil
		}
		count := func(n int64) (string, error) {
			if n < 0 {
				return "", catalog.ErrNoAttr
			}
			return strconv.FormatInt(n, 10), nil
		}
		switch what {
		case "name":
			return v.Name, nil
		case "qcs":
			return some(v.QCS)
		case "creation-date":
			return date(v.Created)
		case "last-inventory-date":
			return date(v.LastInventory)
		case "number-of-archives":
			return count(v.Archives)
		}
		return count(v.Bytes)
	case "state", "archive-id", "tree-hash", "uploaded-at", "job", "eta", "progress", "error", "version", "pin":
	default:
		return "", catalog.ErrNoAttr
	}
	st, err := e.stat(ino, what == "archive-id")
	if err != nil {
		return "", err
	}
	if st.Type != "file" {
		return "", catalog.ErrNoAttr
	}
	switch what {
	case "state":
		return some(st.State)
	case "archive-id":
		var ids []string
		for _, a := range st.Archives {
			ids = append(ids, a.ID)
		}
		return some(strings.Join(ids, "\n"))
	case "tree-hash":
		return some(st.TreeHash)
	case "uploaded-at":
		return when(st.UploadedAt)
	case "job":
		return some(st.Job)
	case "eta":
		return when(st.ETA)
	case "progress":
		return strconv.FormatFloat(st.Progress, 'f', 3, 64), nil
	case "error":
		return some(st.Error)
	case "pin":
		if st.Pinned {
			return "1", nil
		}
		return "0", nil
	}
	return strconv.FormatUint(st.Version, 10), nil
}

// Setxattr stores a user's attribute. user.cas.recall, .evict and .pin act instead (recall is queued,
// not waited for). Errors: catalog.ErrNoAttr, ErrExist, ErrPerm; ErrBusy when evict finds a reason to keep the local copy.
func (e *Engine) Setxattr(ctx context.Context, c Caller, ino uint64, name string, value []byte, create, replace bool) error {
	if what, ok := strings.CutPrefix(name, casPrefix); ok {
		return e.failed("setxattr", ino, name, e.order(ctx, c, ino, what, strings.TrimSpace(string(value))))
	}
	if err := e.writable(); err != nil {
		return err
	}
	_, err := e.catalog.Update(func(tx *catalog.Tx) error {
		if err := tx.SetXattr(ino, name, value, create, replace); err != nil {
			return err
		}
		return changedTx(tx, ino)
	})
	if err != nil {
		return e.failed("setxattr", ino, name, err)
	}
	e.refresh(ino)
	e.quiet(ino)
	return nil
}

func changedTx(tx *catalog.Tx, ino uint64) error {
	i, err := tx.Inode(ino)
	if err != nil {
		return err
	}
	i.Ctime = max(i.Ctime, time.Now().UnixNano())
	return tx.PutInode(i)
}

// order obeys a virtual attribute.
func (e *Engine) order(ctx context.Context, c Caller, ino uint64, what, value string) error {
	switch what {
	case "recall":
		switch value {
		case "":
		case "standard", "bulk", "expedited":
		default:
			return fmt.Errorf("%w: recall takes standard, bulk or expedited", catalog.ErrInvalid)
		}
		if e.closing.Load() {
			return ErrClosing
		}
		f, err := e.acquire(ino)
		if err != nil {
			return err
		}
		defer f.put()
		return e.recall.queue(c, f, value, true)
	case "evict":
		if value != "1" {
			return fmt.Errorf("%w: evict takes 1", catalog.ErrInvalid)
		}
		f, err := e.acquire(ino)
		if err != nil {
			return err
		}
		defer f.put()
		err = e.recall.evict(f, false, false)
		for _, why := range []error{errNotArchived, errInUseNow, errPinned, errRecalling, errLastCopy} {
			if errors.Is(err, why) {
				return fmt.Errorf("%w: %w", ErrBusy, err)
			}
		}
		return err
	case "pin":
		if value != "0" && value != "1" {
			return fmt.Errorf("%w: pin takes 0 or 1", catalog.ErrInvalid)
		}
		if e.opts.ReadOnly {
			return ErrReadOnly
		}
		a, err := e.Getattr(ctx, ino)
		switch {
		case err != nil:
			return err
		case a.Mode&syscall.S_IFMT != syscall.S_IFREG:
			return catalog.ErrPerm
		case value == "0":
			e.recall.unpin(ino)
		default:
			if err := e.recall.pin(ino, a.Size); err != nil {
				return err
			}
		}
		_, err = e.catalog.Update(func(tx *catalog.Tx) error {
			i, err := tx.Inode(ino)
			if err != nil {
				return err
			}
			i.Pinned = value == "1"
			return tx.PutInode(i)
		})
		if err == nil {
			e.refresh(ino)
		}
		return err
	}
	return catalog.ErrPerm
}

// Removexattr removes a user's attribute. Errors: catalog.ErrNoAttr, catalog.ErrPerm for virtual ones.
func (e *Engine) Removexattr(ctx context.Context, ino uint64, name string) error {
	if err := e.writable(); err != nil {
		return err
	}
	if strings.HasPrefix(name, casPrefix) {
		return catalog.ErrPerm
	}
	_, err := e.catalog.Update(func(tx *catalog.Tx) error {
		if err := tx.RemoveXattr(ino, name); err != nil {
			return err
		}
		return changedTx(tx, ino)
	})
	if err != nil {
		return e.failed("removexattr", ino, name, err)
	}
	e.refresh(ino)
	return nil
}

// Listxattr lists users' attributes only.
func (e *Engine) Listxattr(ctx context.Context, ino uint64) ([]string, error) {
	var list []string
	err := e.catalog.View(func(tx *catalog.Tx) error {
		var err error
		list, err = tx.Xattrs(ino)
		return err
	})
	return list, err
}

func hexHash(h [32]byte) string {
	if h == ([32]byte{}) {
		return ""
	}
	return hex.EncodeToString(h[:])
}
