package fs

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
)

// fsType is the type of our mounts in mountinfo.
const fsType = "fuse." + subtype

const subtype = "casfs"

// mountEntry is a line of /proc/self/mountinfo.
type mountEntry struct {
	major, minor int
	dir          string
	fsType       string
}

// mounts reads the mount table, in the order of mounting: of several entries
// for one directory the last is on top.
func mounts() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f)
}

func parseMounts(r io.Reader) ([]mountEntry, error) {
	var list []mountEntry
	s := bufio.NewScanner(r)
	for s.Scan() {
		// 36 35 98:0 /root /dir opts [optional…] - type source superopts
		left, right, ok := strings.Cut(s.Text(), " - ")
		l, rt := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(rt) < 1 {
			continue
		}
		var e mountEntry
		major, minor, _ := strings.Cut(l[2], ":")
		e.major, _ = strconv.Atoi(major)
		e.minor, _ = strconv.Atoi(minor)
		e.dir = unescape(l[4])
		e.fsType = unescape(rt[0])
		list = append(list, e)
	}
	return list, s.Err()
}

// unescape undoes the octal escapes of blanks, newlines and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountAt returns the mount on top of dir itself.
func mountAt(dir string) (mountEntry, bool, error) {
	list, err := mounts()
	if err != nil {
		return mountEntry{}, false, err
	}
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].dir == dir {
			return list[i], true, nil
		}
	}
	return mountEntry{}, false, nil
}

// mountOf returns the mount that the clean absolute path lies in, by name: the deepest, of equals the last.
func mountOf(list []mountEntry, path string) (mountEntry, bool) {
	var best mountEntry
	found := false
	for _, e := range list {
		if within(path, e.dir) && (!found || len(e.dir) >= len(best.dir)) {
			best, found = e, true
		}
	}
	return best, found
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir) && path[len(dir)] == '/'
}
