package jobs

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/casfs/casfs/cas"
)

// Metadata is what an archive description carries, so that the vault alone is
// enough to rebuild the tree.
type Metadata struct {
	Intent    string
	Ino, V    uint64
	Size      int64
	Mtime     int64 // ns
	Mode      uint32
	UID, GID  uint32
	Born      int64  // ns; when inode Ino was made: a catalog restored from a backup gives its numbers out again. 0: not told
	Seg, Segs int    // segment Seg of Segs, counted from 0; Segs 0 or 1: one archive
	Set       string // of a segment: which others it belongs with (setOf), setOpen while the file was still being written; "" not told
	Off       int64  // where the segment begins, told with Set
	Path      string // within the vault, without leading slash
	Cut       bool   // Path lost its left part

	Dirs []uint32   // modes of the directories of Path, outermost first; nil: not told
	Root *VaultRoot // of the directory that Path begins in; nil: not told
}

// usualDir is the mode of a directory that needs no telling, if guessDir guesses it.
const usualDir = 0o755

// guessDir is the mode of a directory of which nothing but the mode of a file in it is known: who may read that file needs to
// get there, and nobody else.
func guessDir(file uint32) uint32 {
	read := file & 0o044
	return 0o700 | read | read>>2
}

// formatDirs is the field with the modes of directories.
func formatDirs(modes []uint32) string {
	var b strings.Builder
	for i, mode := range modes {
		sep := "."
		if i == 0 {
			sep = " dirs="
		}
		fmt.Fprintf(&b, "%s%o", sep, mode)
	}
	return b.String()
}

func parseDirs(s string) (modes []uint32, err error) {
	for field := range strings.SplitSeq(s, ".") {
		mode, err := strconv.ParseUint(field, 8, 12) // what chmod sets, and no type of file
		if err != nil {
			return nil, err
		}
		modes = append(modes, uint32(mode))
	}
	return modes, nil
}

// withoutDirs leaves the modes of the directories out: whom one of them keeps out, the file's own mode keeps out then.
func withoutDirs(m Metadata) Metadata {
	m.Mode &^= keptOut(m.Dirs...)
	m.Dirs = nil
	return m
}

// withoutRoot does so with the vault's: whom that keeps out, the directories in it keep out, too.
func withoutRoot(m Metadata) Metadata {
	out := keptOut(m.Root.Mode)
	m.Mode &^= out
	m.Dirs = slices.Clone(m.Dirs)
	for i := range m.Dirs {
		m.Dirs[i] &^= out
	}
	m.Root = nil
	return m
}

// keptOut returns the permissions of group and others that are of no use below directories with these modes.
func keptOut(modes ...uint32) (out uint32) {
	for _, mode := range modes {
		for _, who := range []uint32{0o070, 0o007} {
			if pass := who & 0o055; mode&pass != pass {
				out |= who
			}
		}
	}
	return out
}

// descriptionMagic begins every description of this format. Another format gets
// another word, so that this one's reader leaves it alone.
const descriptionMagic = "casfs1 "

// setOpen is the Set of a segment that was sent before its file was complete: which others it belongs with is told by one of those.
const setOpen = "open"

// setOf names the segments of a version by their intents, in order. Segments of different makings of a version, of which an
// older state directory knew nothing, are not to be mixed.
func setOf(intents []string) string {
	h := sha256.Sum256([]byte(strings.Join(intents, "\n")))
	return hex.EncodeToString(h[:8])
}

// pathByte reports whether b stands for itself in a description's path. The
// set is RFC 3986's for paths: no blanks, no '%', nothing outside printable ASCII.
func pathByte(b byte) bool {
	switch {
	case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9':
		return true
	}
	return strings.IndexByte("-._~/!$&'()*+,;=:@", b) >= 0
}

const upperHex = "0123456789ABCDEF"

func percentEncode(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		if pathByte(s[i]) {
			b.WriteByte(s[i])
			continue
		}
		b.WriteByte('%')
		b.WriteByte(upperHex[s[i]>>4])
		b.WriteByte(upperHex[s[i]&15])
	}
	return b.String()
}

func percentDecode(s string) (string, bool) {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			if !pathByte(s[i]) {
				return "", false
			}
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil || s[i+1] == '+' {
			return "", false
		}
		b.WriteByte(byte(n))
		i += 2
	}
	return b.String(), true
}

// formatDescription writes casfs's description: printable ASCII, at most 1024 bytes, the path percent-encoded and
// shortened from the left (path~=) when it does not fit. Modes of directories, and what the vault's own is, are told where they fit beside all of the path.
func formatDescription(m Metadata) string {
	var b strings.Builder
	b.WriteString(descriptionMagic)
	fmt.Fprintf(&b, "id=%s ino=%d v=%d size=%d mtime=%d mode=%o uid=%d gid=%d",
		percentEncode(m.Intent), m.Ino, m.V, m.Size, m.Mtime, m.Mode, m.UID, m.GID)
	if m.Born != 0 {
		fmt.Fprintf(&b, " born=%d", m.Born)
	}
	if m.Segs > 1 {
		fmt.Fprintf(&b, " seg=%d/%d", m.Seg, m.Segs)
		if m.Set != "" {
			fmt.Fprintf(&b, " off=%d set=%s", m.Off, percentEncode(m.Set))
		}
	}
	b.WriteString(formatRoot(m.Root))
	b.WriteString(formatDirs(m.Dirs))
	head := b.String()
	if path := percentEncode(m.Path); !m.Cut && len(head)+len(" path=")+len(path) <= cas.MaxDescription {
		return head + " path=" + path
	}
	if m.Root != nil { // other archives tell it, too
		return formatDescription(withoutRoot(m))
	}
	if len(m.Dirs) > 0 {
		return formatDescription(withoutDirs(m))
	}
	return head + " path~=" + tailPath(m.Path, cas.MaxDescription-len(head)-len(" path~="))
}

// tailPath encodes the longest right part of path that fits in n bytes and consists of whole names or, when not even
// the last of them fits, does not begin inside a character.
func tailPath(path string, n int) string {
	from, used := len(path), 0
	for from > 0 {
		w := 3
		if pathByte(path[from-1]) {
			w = 1
		}
		if used+w > n {
			break
		}
		used += w
		from--
	}
	if from > 0 {
		if k := strings.IndexByte(path[from-1:], '/'); k >= 0 && from+k < len(path) {
			return percentEncode(path[from+k:])
		}
		// Step over the rest of a cut character; bytes that are no UTF-8 stay.
		for k := 1; k < utf8.UTFMax && from-k >= 0; k++ {
			if utf8.RuneStart(path[from-k]) {
				if r, size := utf8.DecodeRuneInString(path[from-k:]); r != utf8.RuneError && size > k {
					from += size - k
				}
				break
			}
		}
	}
	return percentEncode(path[from:])
}

// parseDescription reads what formatDescription wrote; ok is false for anything else.
// Keys it does not know are ignored, so that the format can grow. The path is as untrusted as any description: see components.
func parseDescription(s string) (m Metadata, ok bool) {
	rest, found := strings.CutPrefix(s, descriptionMagic)
	if !found || len(s) > cas.MaxDescription {
		return Metadata{}, false
	}
	const (
		hasID = 1 << iota
		hasIno
		hasV
		hasSize
		hasMtime
		hasMode
		hasPath
		hasSeg
		hasUID
		hasGID
		hasBorn
		hasSet
		hasOff
		hasDirs
		hasRoot
		required = hasID | hasIno | hasV | hasSize | hasMtime | hasMode | hasPath
	)
	seen := 0
	for field := range strings.SplitSeq(rest, " ") {
		key, value, isPair := strings.Cut(field, "=")
		if !isPair || key == "" {
			return Metadata{}, false
		}
		var err error
		bit, good := 0, true
		switch key {
		case "id":
			bit = hasID
			m.Intent, good = percentDecode(value)
			good = good && m.Intent != ""
		case "ino":
			bit = hasIno
			m.Ino, err = strconv.ParseUint(value, 10, 64)
		case "v":
			bit = hasV
			m.V, err = strconv.ParseUint(value, 10, 64)
		case "size":
			bit = hasSize
			m.Size, err = strconv.ParseInt(value, 10, 64)
			good = m.Size >= 0
		case "mtime":
			bit = hasMtime
			m.Mtime, err = strconv.ParseInt(value, 10, 64)
		case "mode":
			bit = hasMode
			m.Mode, err = parse32(value, 8)
		case "uid":
			bit = hasUID
			m.UID, err = parseID(value)
		case "gid":
			bit = hasGID
			m.GID, err = parseID(value)
		case "born":
			bit = hasBorn
			m.Born, err = strconv.ParseInt(value, 10, 64)
			good = m.Born != 0
		case "seg":
			bit = hasSeg
			i, n, _ := strings.Cut(value, "/")
			m.Seg, err = strconv.Atoi(i)
			if err == nil {
				m.Segs, err = strconv.Atoi(n)
			}
			good = m.Segs > 1 && m.Seg >= 0 && m.Seg < m.Segs
		case "set":
			bit = hasSet
			m.Set, good = percentDecode(value)
			good = good && m.Set != "" && len(m.Set) <= 64
		case "off":
			bit = hasOff
			m.Off, err = strconv.ParseInt(value, 10, 64)
			good = m.Off >= 0
		case "dirs":
			bit = hasDirs
			m.Dirs, err = parseDirs(value)
		case "root":
			bit = hasRoot
			m.Root, err = parseRoot(value)
		case "path", "path~":
			bit = hasPath
			m.Path, good = percentDecode(value)
			m.Cut = key == "path~"
		}
		if err != nil || !good || seen&bit != 0 {
			return Metadata{}, false
		}
		seen |= bit
	}
	if seen&required != required || seen&hasDirs != 0 && len(m.Dirs) != strings.Count(m.Path, "/") {
		return Metadata{}, false
	}
	if m.Segs == 0 || seen&(hasSet|hasOff) != hasSet|hasOff {
		m.Set, m.Off = "", 0
	}
	if m.Cut {
		m.Dirs = nil // it may begin within a name: which are of which is not certain
	}
	return m, true
}

func parse32(s string, base int) (uint32, error) {
	n, err := strconv.ParseUint(s, base, 32)
	return uint32(n), err
}

// parseID reads a user or group. The last number is that of none, in chown(2) and in the kernel.
func parseID(s string) (uint32, error) {
	n, err := parse32(s, 10)
	if n == math.MaxUint32 {
		err = strconv.ErrRange
	}
	return n, err
}

// jobDescription is the note casfs puts on its jobs: a lost answer to Initiate
// Job is found again in List Jobs by it.
func jobDescription(catalogID string, id uint64) string {
	return fmt.Sprintf("casfs1 r=%s-%d", catalogID, id)
}
