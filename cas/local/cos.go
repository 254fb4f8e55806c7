package local

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"
)

// Buckets are directories and objects plain files under DIR/cos. All access
// goes through an os.Root, so that neither a key nor a symbolic link leads out.

// cosTarget checks bucket and object.
func cosTarget(j *jobSpec, q *jobRequest) error {
	if q.Bucket == "" {
		return missing("Bucket")
	}
	if q.Object == "" {
		return missing("Object")
	}
	for i := 0; i < len(q.Bucket); i++ {
		if c := q.Bucket[i]; !isAlnum(c) && c != '-' && (c != '.' || i == 0) {
			return invalid("Bucket must be a bucket's domain")
		}
	}
	if len(q.Bucket) > 255 {
		return invalid("Bucket is too long")
	}
	if len(q.Object) > 850 || !utf8.ValidString(q.Object) || strings.ContainsRune(q.Object, 0) {
		return invalid("Object must be 1 to 850 bytes of UTF-8")
	}
	for seg := range strings.SplitSeq(q.Object, "/") {
		if seg == "" || seg == "." || seg == ".." || len(seg) > 255 {
			return invalid("Object cannot be kept as a file: %.80q", q.Object)
		}
	}
	j.Bucket, j.Object = q.Bucket, q.Object
	return nil
}

func pullJob(j *jobSpec, q *jobRequest) (err error) {
	if j.ArchiveDesc, err = cleanDescription(q.ArchiveDescription); err != nil {
		return err
	}
	if q.Range != "" {
		if _, _, ok := parseCOSRange(q.Range); !ok {
			return invalid("Range must be bytes=FIRST-LAST")
		}
	}
	for k, val := range q.Condition {
		switch k {
		case "If-Modified-Since", "If-Unmodified-Since", "If-Umodified-Since":
			if _, err := parseHTTPDate(val); err != nil {
				return invalid("%s must be a date", k)
			}
		case "If-Match", "If-None-Match":
		default:
			return invalid("unknown condition %.64q", k)
		}
	}
	j.COSRange, j.Condition = q.Range, q.Condition
	return nil
}

// parseCOSRange reads "bytes=first-last" or "first-last", open or not; last is
// -1 when open.
func parseCOSRange(s string) (first, last int64, ok bool) {
	return parseFirstLast(strings.TrimPrefix(s, "bytes="), true)
}

func parseHTTPDate(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	return http.ParseTime(s)
}

// contextReader ends a long copy when the store is closed.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// push copies the job's range of the archive to DIR/cos/BUCKET/OBJECT.
func (v *vault) push(j *job) error {
	v.mu.Lock()
	a := v.archives[j.Archive]
	v.mu.Unlock()
	if a == nil {
		return errors.New("the archive was deleted")
	}
	src, err := os.Open(v.archivePath(a.shard, a.id))
	if err != nil {
		return err
	}
	defer src.Close()
	root, err := os.OpenRoot(filepath.Join(v.s.dir, "cos"))
	if err != nil {
		return err
	}
	defer root.Close()
	name := path.Join(j.Bucket, j.Object)
	if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	tmp := ".push-" + j.ID
	dst, err := root.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer root.Remove(tmp)
	n := j.End - j.First
	got, err := receive(contextReader{v.s.ctx, io.NewSectionReader(src, j.First, n)}, n, func(off int64, p []byte, zero bool) error {
		if zero {
			return nil
		}
		_, err := dst.WriteAt(p, off)
		return err
	})
	if err == nil {
		err = v.sound(a, j, got)
	}
	if err == nil {
		err = dst.Truncate(n)
	}
	if err == nil {
		err = v.s.syncFile(dst)
	}
	err = errors.Join(err, dst.Close())
	if err != nil {
		return err
	}
	if err := root.Rename(tmp, name); err != nil {
		return err
	}
	return v.s.syncDir(filepath.Join(v.s.dir, "cos", filepath.FromSlash(path.Dir(name))))
}

// sound refuses what was read of the archive unless it is what was uploaded: nobody checks a copy in a bucket.
func (v *vault) sound(a *archive, j *job, got received) error {
	if !j.RangeTree.isZero() {
		if got.tree == j.RangeTree {
			return nil
		}
	} else {
		same, i := true, 0
		err := eachLeaf(v.archivePath(a.shard, a.id)+".tree", j.First/mib, leafCount(j.End), func(d digest) {
			same = same && d == got.leaves[i]
			i++
		})
		if err == nil && same {
			return nil
		}
		if _, err := v.mendLeaves(a); err == nil { // it was the leaf file
			return nil
		}
	}
	return errors.New("the archive is damaged")
}

// pull makes an archive of DIR/cos/BUCKET/OBJECT. The record of the archive is
// also the job's end, so that a crash cannot make the archive twice.
func (v *vault) pull(j *job) error {
	root, err := os.OpenRoot(filepath.Join(v.s.dir, "cos"))
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.Open(path.Join(j.Bucket, j.Object))
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no object", j.Object)
	}
	if err := j.checkConditions(v.s.ctx, f, st); err != nil {
		return err
	}
	first, end := int64(0), st.Size()
	if j.COSRange != "" {
		a, b, _ := parseCOSRange(j.COSRange)
		first = a
		if b >= 0 {
			end = min(end, b+1)
		}
	}
	if first >= end {
		return errors.New("the range of the object is empty")
	}
	if end-first > maxArchive {
		return fmt.Errorf("an archive has at most %d bytes", int64(maxArchive))
	}
	done, err := v.beginWrite()
	if err != nil {
		return err
	}
	defer done()
	body := contextReader{v.s.ctx, io.NewSectionReader(f, first, end-first)}
	_, err = v.store(body, end-first, j.ArchiveDesc, j.ID, func(received) error { return nil })
	return err
}

func (j *job) checkConditions(ctx context.Context, f io.ReadSeeker, st os.FileInfo) error {
	etag := ""
	for k, val := range j.Condition {
		var ok bool
		switch k {
		case "If-Modified-Since", "If-Unmodified-Since", "If-Umodified-Since":
			t, err := parseHTTPDate(val)
			if err != nil {
				return err
			}
			after := st.ModTime().Truncate(time.Second).After(t)
			ok = after == (k == "If-Modified-Since")
		case "If-Match", "If-None-Match":
			if etag == "" {
				h := md5.New()
				if _, err := io.Copy(h, contextReader{ctx, f}); err != nil {
					return err
				}
				etag = hex.EncodeToString(h.Sum(nil))
			}
			same := val == "*" || strings.Trim(val, `"`) == etag
			ok = same == (k == "If-Match")
		}
		if !ok {
			return fmt.Errorf("precondition failed: %s", k)
		}
	}
	return nil
}
