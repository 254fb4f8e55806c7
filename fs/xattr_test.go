package fs

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/casfs/casfs/cas/local"
)

func TestXattrs(t *testing.T) {
	x := mountForTest(t, local.Delays{}, nil)
	p := x.path("f")
	write(t, p, []byte("x"))
	if err := unix.Setxattr(p, "user.a", []byte("1"), unix.XATTR_CREATE); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "CREATE again", unix.Setxattr(p, "user.a", nil, unix.XATTR_CREATE), unix.EEXIST)
	wantErrno(t, "REPLACE of nothing", unix.Setxattr(p, "user.b", nil, unix.XATTR_REPLACE), unix.ENODATA)
	if err := unix.Setxattr(p, "user.a", []byte{}, unix.XATTR_REPLACE); err != nil {
		t.Error(err)
	}
	if got := x.attr(p, "user.a"); got != "" {
		t.Errorf("got %q, want an empty value", got)
	}
	big := fill(64<<10, 3)
	if err := unix.Setxattr(p, "user.big", big, 0); err != nil {
		t.Errorf("64 KiB: %v", err)
	}
	wantErrno(t, "more than 64 KiB", unix.Setxattr(p, "user.big", append(big, 0), 0), unix.E2BIG)
	buf := make([]byte, 64<<10)
	if n, err := unix.Getxattr(p, "user.big", buf); err != nil || !bytes.Equal(buf[:n], big) {
		t.Errorf("read back %d bytes, %v", n, err)
	}
	if n, err := unix.Getxattr(p, "user.big", nil); err != nil || n != len(big) {
		t.Errorf("size query: %d, %v", n, err)
	}
	if _, err := unix.Getxattr(p, "user.big", buf[:10]); err != unix.ERANGE {
		t.Errorf("a buffer too small: %v, want ERANGE", err)
	}
	list := func() []string {
		t.Helper()
		n, err := unix.Listxattr(p, buf)
		if err != nil {
			t.Fatal(err)
		}
		names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
		slices.Sort(names)
		return names
	}
	if got := list(); !slices.Equal(got, []string{"user.a", "user.big"}) {
		t.Errorf("list %q; casfs's own must not be in it", got)
	}
	_, err := unix.Getxattr(p, "security.capability", buf)
	wantErrno(t, "security.capability", err, unix.EOPNOTSUPP)
	_, err = unix.Getxattr(p, "system.posix_acl_access", buf)
	wantErrno(t, "reading an ACL", err, unix.EOPNOTSUPP)
	wantErrno(t, "setting a capability", unix.Setxattr(p, "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0), unix.EOPNOTSUPP)
	wantErrno(t, "removing nothing", unix.Removexattr(p, "user.none"), unix.ENODATA)
	if err := unix.Removexattr(p, "user.a"); err != nil {
		t.Error(err)
	}
	if got := x.attr(p, controlAttr); got != x.opts.Control {
		t.Errorf("%s = %q", controlAttr, got)
	}
	if got := x.attr(x.dir, controlAttr); got != x.opts.Control {
		t.Errorf("%s of the root = %q", controlAttr, got)
	}
	if err := unix.Setxattr(x.path(), "user.dir", []byte("d"), 0); err != nil {
		t.Errorf("of a directory: %v", err)
	}
	x.cold(p)
	x.remount()
	if got := list(); !slices.Equal(got, []string{"user.big"}) {
		t.Errorf("after eviction and remount: %q", got)
	}

	// The verbs.
	if got := x.attr(p, "user.cas.state"); got != "cold" {
		t.Errorf("state %q", got)
	}
	if err := unix.Setxattr(p, "user.cas.recall", []byte("standard"), 0); err != nil {
		t.Error(err)
	}
	eventually(t, "recalled", func() bool { return x.attr(p, "user.cas.state") == "resident" })
	evict := func() error { return unix.Setxattr(p, "user.cas.evict", []byte("1"), 0) }
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "evict of an open file", evict(), unix.EBUSY)
	f.Close()
	eventually(t, "nothing holds it", func() bool {
		err := evict()
		if err != nil && !errors.Is(err, unix.EBUSY) {
			t.Fatalf("evict: %v", err)
		}
		return err == nil
	})
	if got := x.attr(p, "user.cas.state"); got != "cold" {
		t.Errorf("state %q after user.cas.evict, want cold", got)
	}
	if err := unix.Setxattr(p, "user.cas.pin", []byte("1"), 0); err != nil {
		t.Error(err)
	}
	if err := unix.Setxattr(p, "user.cas.state", []byte("resident"), 0); err == nil {
		t.Error("user.cas.state could be set")
	}
}
