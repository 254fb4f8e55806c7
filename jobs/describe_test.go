package jobs

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/casfs/casfs/cas"
)

func sampleMetadata() Metadata {
	return Metadata{
		Intent: "0123456789abcdef", Ino: 17, V: 3, Size: 41955385, Mtime: 1510109254123456789,
		Mode: 0o100644, UID: 1000, GID: 100, Path: "photos/2019/a b.jpg",
	}
}

func TestDescriptionFormat(t *testing.T) {
	m := sampleMetadata()
	got := formatDescription(m)
	want := "casfs1 id=0123456789abcdef ino=17 v=3 size=41955385 mtime=1510109254123456789 mode=100644 uid=1000 gid=100 path=photos/2019/a%20b.jpg"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	m.Seg, m.Segs = 2, 5
	m.Born = 1510000000123456789
	if got := formatDescription(m); !strings.Contains(got, " gid=100 born=1510000000123456789 seg=2/5 path=") {
		t.Errorf("birth and segments are missing in %s", got)
	}
}

func TestDescriptionRoundTrip(t *testing.T) {
	for _, path := range []string{
		"a", "照片/夏 天.jpg", "new\nline\x00\xff\xfe", "100%/%41", "", strings.Repeat("d/", 300) + "f",
	} {
		m := sampleMetadata()
		m.Path = path
		m.Born = int64(len(path))
		s := formatDescription(m)
		got, ok := parseDescription(s)
		if !ok || !reflect.DeepEqual(got, m) {
			t.Errorf("%q came back as %+v, %v", path, got, ok)
		}
	}
}

func TestDescriptionCutsPathFromTheLeft(t *testing.T) {
	m := sampleMetadata()
	m.Path = strings.Repeat("夏/", 200) + "name.jpg"
	s := formatDescription(m)
	if len(s) > cas.MaxDescription || len(s) < cas.MaxDescription-12 {
		t.Errorf("%d bytes", len(s))
	}
	got, ok := parseDescription(s)
	if !ok || !got.Cut || !strings.HasSuffix(m.Path, got.Path) || !utf8.ValidString(got.Path) {
		t.Errorf("parsed %+v, %v from %s", got, ok, s)
	}
	if again := formatDescription(got); again != s {
		t.Errorf("formatting again gives\n%s, not\n%s", again, s)
	}
}

// TestDescriptionCutsBetweenNames: only a last name that does not fit alone is cut.
func TestDescriptionCutsBetweenNames(t *testing.T) {
	name := strings.Repeat("夏", 60) // 540 bytes encoded
	m := sampleMetadata()
	m.Path, m.Cut = "", true
	room := cas.MaxDescription - len(formatDescription(m))
	for _, test := range []struct{ path, want string }{
		{name + "/" + name + "/f.jpg", name + "/f.jpg"},
		{"d/" + name + "/" + name, name},
		{strings.Repeat("long/", 400) + "f", strings.Repeat("long/", (room-1)/5) + "f"},
		{strings.Repeat("d/", 10) + strings.Repeat("x", 1000), strings.Repeat("x", room)},
	} {
		m := sampleMetadata()
		m.Path = test.path
		s := formatDescription(m)
		got, ok := parseDescription(s)
		if !ok || !got.Cut || got.Path != test.want {
			t.Errorf("%.20s…: got %q, want %q", test.path, got.Path, test.want)
		}
		if again := formatDescription(got); again != s {
			t.Errorf("formatting again gives\n%s, not\n%s", again, s)
		}
	}
	// Earlier versions cut anywhere.
	m = sampleMetadata()
	m.Path, m.Cut = "tos/2019/a b.jpg", true
	old := strings.Replace(formatDescription(sampleMetadata()), " path=pho", " path~=", 1)
	if got, ok := parseDescription(old); !ok || !reflect.DeepEqual(got, m) || formatDescription(got) != old {
		t.Errorf("%s is read as %+v, %v", old, got, ok)
	}
}

func TestDescriptionTellsModesOfDirectories(t *testing.T) {
	m := sampleMetadata()
	plain := formatDescription(m)
	m.Dirs = []uint32{0o700, 0o2775}
	s := formatDescription(m)
	if want := strings.Replace(plain, " path=", " dirs=700.2775 path=", 1); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	if got, ok := parseDescription(s); !ok || !reflect.DeepEqual(got, m) {
		t.Errorf("came back as %+v, %v", got, ok)
	}
	if got, ok := parseDescription(strings.Replace(s, " path=photos/", " path~=/", 1)); !ok || got.Dirs != nil {
		t.Errorf("a path that lost its left part: %+v, %v", got, ok)
	}
	// The path goes first, and then the file's own mode keeps out whom a directory kept out.
	for _, test := range []struct {
		dirs []uint32
		room bool
		mode uint32
	}{
		{[]uint32{0o700, 0o755}, true, 0o4755},
		{[]uint32{0o700, 0o755}, false, 0o4700},
		{[]uint32{0o755, 0o2750}, false, 0o4750},
		{[]uint32{0o775, 0o1777}, false, 0o4755},
		{[]uint32{0o711, 0o755}, false, 0o4700},
	} {
		m := sampleMetadata()
		m.Mode, m.Path, m.Dirs = 0o4755, "a/b/c", nil
		n := cas.MaxDescription - len(formatDescription(m))
		m.Dirs = test.dirs
		if test.room {
			n -= len(formatDirs(m.Dirs))
		}
		m.Path += strings.Repeat("x", n)
		s := formatDescription(m)
		got, ok := parseDescription(s)
		if !ok || len(s) != cas.MaxDescription || got.Path != m.Path || got.Mode != test.mode || (got.Dirs != nil) != test.room {
			t.Errorf("%o: %d bytes, mode %o, modes of directories %o, path of %d bytes, want mode %o, path of %d bytes",
				test.dirs, len(s), got.Mode, got.Dirs, len(got.Path), test.mode, len(m.Path))
		}
		m.Path += "x"
		if got, ok := parseDescription(formatDescription(m)); !ok || got.Dirs != nil || got.Cut == test.room {
			t.Errorf("%o: a byte more gives %+v, %v", test.dirs, got, ok)
		}
	}
}

func TestParseDescriptionRefuses(t *testing.T) {
	good := formatDescription(sampleMetadata())
	for _, s := range []string{
		"", "casfs1", "casfs1 ", "photo.jpg", "casfs2" + good[6:], good + " ", good + " path=b",
		strings.Replace(good, "ino=17", "ino=-17", 1), strings.Replace(good, "mode=100644", "mode=9", 1),
		strings.Replace(good, "size=", "size=-", 1), strings.Replace(good, " path=", " seg=5/5 path=", 1),
		strings.Replace(good, " path=", " seg=1 path=", 1), strings.Replace(good, "%20", "%2", 1) + "%",
		strings.Replace(good, " path=", " born=x path=", 1), strings.Replace(good, " path=", " born=1 born=2 path=", 1),
		strings.Replace(good, " path=", " dirs=755 path=", 1), strings.Replace(good, " path=", " dirs=755.755.755 path=", 1),
		strings.Replace(good, " path=", " dirs= path=", 1), strings.Replace(good, " path=", " dirs=755. path=", 1),
		strings.Replace(good, " path=", " dirs=755.758 path=", 1), strings.Replace(good, " path=", " dirs=755.10755 path=", 1),
		strings.Replace(good, " path=", " dirs=755.+55 path=", 1), strings.Replace(good, " path=", " dirs=755,755 path=", 1),
		strings.Replace(good, " path=", " dirs=755.755 dirs=755.755 path=", 1),
		strings.Replace(good, "%20", "%zz", 1), strings.Replace(good, " v=3", "", 1),
		good + strings.Repeat("x", cas.MaxDescription),
	} {
		if m, ok := parseDescription(s); ok {
			t.Errorf("%q was taken for %+v", s, m)
		}
	}
	for _, s := range []string{good + " later=1", strings.Replace(good, " path=", " later=700.755 path=", 1)} {
		if m, ok := parseDescription(s); !ok || !reflect.DeepEqual(m, sampleMetadata()) {
			t.Errorf("an unknown key is not ignored in %s", s)
		}
	}
}

func FuzzParseDescription(f *testing.F) {
	m := sampleMetadata()
	f.Add(formatDescription(m))
	m.Path = strings.Repeat("夏/", 200)
	f.Add(formatDescription(m))
	m.Seg, m.Segs = 1, 3
	m.Born = -1
	f.Add(formatDescription(m))
	f.Add("casfs1 id=%00 ino=1 v=1 size=0 mtime=-1 mode=0 path~=%FF")
	f.Add("casfs1 id=x ino=1 v=1 size=0 mtime=0 mode=644 dirs=0.07777 path=a//b")
	f.Add("casfs1 id=x ino=1 v=1 size=0 mtime=0 mode=644 dirs=700" + strings.Repeat(".700", 190) + " path=" + strings.Repeat("/", 191))
	f.Fuzz(func(t *testing.T, s string) {
		m, ok := parseDescription(s)
		if !ok {
			return
		}
		for _, c := range m.components() {
			checkComponent(t, c)
		}
		again := formatDescription(m)
		checkDescription(t, again)
		got, ok := parseDescription(again)
		if ok && got.Dirs == nil { // what was not told of the owner is, and takes their room
			m = withoutDirs(m)
		}
		if !ok || !got.Cut && !reflect.DeepEqual(got, m) {
			t.Errorf("%q parsed to %+v, written as %q, parsed to %+v, %v", s, m, again, got, ok)
		}
	})
}

func FuzzFormatDescription(f *testing.F) {
	f.Add("id", uint64(1), int64(5), uint32(0o644), 0, 0, "a/b")
	f.Add("\x00", uint64(1<<63), int64(1<<62), uint32(1<<31), 1, 2, "\xff\n "+strings.Repeat("é", 900))
	f.Add("id", uint64(1), int64(5), uint32(0o2755), 0, 0, "a/b/c")
	f.Add("id", uint64(1), int64(5), uint32(0o2755), 0, 0, strings.Repeat("a/", 300))
	f.Add("id", uint64(1), int64(5), uint32(0o2755), 0, 0, strings.Repeat("夏/", 90)+"x")
	f.Fuzz(func(t *testing.T, intent string, ino uint64, size int64, mode uint32, seg, segs int, path string) {
		if len(intent) > 64 {
			intent = intent[:64]
		}
		m := Metadata{Intent: intent, Ino: ino, V: ino, Size: max(size, 0), Mtime: size, Mode: mode, UID: mode, GID: mode, Path: path}
		if segs > 1 && seg >= 0 && seg < segs {
			m.Seg, m.Segs = seg, segs
		}
		if mode&1 != 0 {
			for k := range strings.Count(path, "/") {
				m.Dirs = append(m.Dirs, mode>>(k%8)&0o7777)
			}
		}
		s := formatDescription(m)
		checkDescription(t, s)
		got, ok := parseDescription(s)
		if ok != (intent != "") {
			t.Fatalf("%q does not parse", s)
		}
		if !ok {
			return
		}
		if got.Cut {
			if !strings.HasSuffix(path, got.Path) {
				t.Errorf("%q is no end of %q", got.Path, path)
			}
			if from := len(path) - len(got.Path); from > 0 && path[from-1] != '/' && strings.Contains(strings.TrimRight(got.Path, "/"), "/") {
				t.Errorf("%q begins within a name of %q", got.Path, path)
			}
			got.Path, got.Cut = path, false
		}
		if got.Dirs == nil {
			m = withoutDirs(m)
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("got %+v, want %+v", got, m)
		}
	})
}

func checkDescription(t *testing.T, s string) {
	t.Helper()
	if len(s) > cas.MaxDescription || strings.TrimSpace(s) != s {
		t.Errorf("%d bytes: %q", len(s), s)
	}
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] > '~' {
			t.Fatalf("byte %#x in %q", s[i], s)
		}
	}
}

// checkComponent holds what a directory entry must keep whatever a description says.
func checkComponent(t *testing.T, c string) {
	t.Helper()
	if c == "" || c == "." || c == ".." || len(c) > 255 || strings.ContainsAny(c, "/\x00") {
		t.Errorf("unsafe name %q", c)
	}
}

func TestDisplayName(t *testing.T) {
	const id = "-8V6EXAMPLEexampleexampleexampleexample"
	mt2 := "mt2 eyJmaWxlbmFtZSI6ImRhdGEv0YTQsNC50LsudHh0IiwibXRpbWUiOiIyMDEzMDEwMlQwMzA0MDVaIn0"
	mt1 := "mt1 eyJmaWxlbmFtZSI6ImEvw4PCqS50eHQiLCJtdGltZSI6IjIwMTMwMTAyVDAzMDQwNVoifQ"
	for _, test := range []struct {
		description string
		want        string // joined by |
	}{
		{"", "archive--8V6EXAMPLEexamp"},
		{"   ", "archive--8V6EXAMPLEexamp"},
		{"photo.jpg", "photo.jpg"},
		{"/home/me/a b.txt", "home|me|a b.txt"},
		{"./x/../y", "x|y"},
		{"../../etc/passwd", "etc|passwd"},
		{"..", "archive--8V6EXAMPLEexamp"},
		{"////", "archive--8V6EXAMPLEexamp"},
		{`C:\Users\me\f.doc`, "Users|me|f.doc"},
		{`dir\f.doc`, "dir|f.doc"},
		{`a/b\c`, `a|b\c`},
		{"~/x", "x"},
		{"照片/2019年.jpg", "照片|2019年.jpg"},
		{"a/" + "照片"[:5], "a|照"}, // cascmd's cut inside a character
		{"bad\xffbyte", "bad\uFFFDbyte"},
		{"two\nlines\x00\x07", "two lines"},
		{"abc\u202Egpj.exe", "abcgpj.exe"},
		{strings.Repeat("x", 300) + ".tar.gz", strings.Repeat("x", 252) + ".gz"},
		{strings.Repeat("夏", 100), strings.Repeat("夏", 85)},
		{mt2, "data|файл.txt"},
		{mt1, "a|é.txt"},
		{"mt2 !!!", "mt2 !!!"},
		{"<m><v>4</v><p>Z2xhY2llci1kZy5wZGY=</p><lm>20120821T170824Z</lm></m>", "glacier-dg.pdf"},
		{"<m><v>2</v><p>ZGlyL2ZpbGU=</p></m>", "dir|file"},
		{`{"Path":"c:\\my\\file.txt","UTCDateModified":"20120926T211216Z"}`, "my|file.txt"},
		{`{"Path":"b/+ZeVnLIqe-.txt"}`, "b|日本語.txt"},
		{`{"Path":"b/c+d-e.txt"}`, "b|c+d-e.txt"},
		{`{"other":1}`, `{"other":1}`},
	} {
		got := strings.Join(displayName(test.description, id), "|")
		if got != test.want {
			t.Errorf("%.80q: got %q, want %q", test.description, got, test.want)
		}
	}
	if got := displayName("", "\x00/../"); got[0] != "archive" {
		t.Errorf("got %q for an ID of rubbish", got)
	}
}

func TestForeignTimes(t *testing.T) {
	for _, s := range []string{
		"<m><v>4</v><p>Z2xhY2llci1kZy5wZGY=</p><lm>20130102T030405Z</lm></m>",
		`{"Path":"x","UTCDateModified":"20130102T030405Z"}`,
		"mt2 eyJmaWxlbmFtZSI6ImRhdGEv0YTQsNC50LsudHh0IiwibXRpbWUiOiIyMDEzMDEwMlQwMzA0MDVaIn0",
	} {
		if _, at := foreignPath(s); at.Unix() != 1357095845 {
			t.Errorf("%s: %v", s, at)
		}
	}
}

func TestWithSuffix(t *testing.T) {
	for _, test := range []struct{ name, want string }{
		{"a.jpg", "a (-8V6EXAM).jpg"},
		{"a", "a (-8V6EXAM)"},
		{".hidden", ".hidden (-8V6EXAM)"},
		{strings.Repeat("x", 255), strings.Repeat("x", 244) + " (-8V6EXAM)"},
	} {
		if got := withSuffix(test.name, "-8V6EXAMPLE", 8); got != test.want || len(got) > 255 {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func FuzzDisplayName(f *testing.F) {
	for _, s := range []string{
		"", "photo.jpg", "../../etc/passwd", "a\nb", strings.Repeat("\xff", 1024), strings.Repeat("../", 340),
		"照片/2019年 夏+秋 (1)~*'\"&=%;.jpg", `{"Path":"c:\\..\\+AC8-x"}`, "mt2 eyJmaWxlbmFtZSI6Ii4uIn0",
		"<m><v>4</v><p>Li4vLi4=</p></m>", "casfs1 id=x ino=1 v=1 size=1 mtime=1 mode=0 path=../%00/%2F..",
		strings.Repeat("a/", 500), strings.Repeat("\x80", 300) + ".x",
	} {
		f.Add(s, "-8V6EXAMPLE")
	}
	f.Fuzz(func(t *testing.T, description, id string) {
		path := displayName(description, id)
		if len(path) == 0 || len(path) > maxDepth {
			t.Fatalf("%d components", len(path))
		}
		for _, c := range path {
			checkComponent(t, c)
			if !utf8.ValidString(c) || strings.ContainsFunc(c, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("%q from %q", c, description)
			}
			checkComponent(t, withSuffix(c, id, 8))
		}
		if again := displayName(description, id); fmt.Sprint(again) != fmt.Sprint(path) {
			t.Errorf("%q then %q", path, again)
		}
	})
}

// TestDescriptionTellsOfTheVault: where there is room; the directories of the path, and the path, go first.
func TestDescriptionTellsOfTheVault(t *testing.T) {
	m := sampleMetadata()
	plain := formatDescription(m)
	m.Root = &VaultRoot{0o2770, 1000, 50, 1700000000123456789}
	s := formatDescription(m)
	if want := strings.Replace(plain, " path=", " root=2770.1000.50.1700000000123456789 path=", 1); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	if got, ok := parseDescription(s); !ok || !reflect.DeepEqual(got, m) {
		t.Errorf("came back as %+v, %v", got, ok)
	}
	m.Mode, m.Path, m.Dirs = 0o644, "a/b/", []uint32{0o700, 0o755}
	m.Root = nil
	m.Path += strings.Repeat("x", cas.MaxDescription-len(formatDescription(m)))
	m.Root = &VaultRoot{0o2750, 1000, 50, 1}
	s = formatDescription(m)
	if got, ok := parseDescription(s); !ok || len(s) != cas.MaxDescription || got.Root != nil || got.Path != m.Path || got.Mode != 0o640 || len(got.Dirs) != 2 {
		t.Errorf("without room: %d bytes, %+v, %v", len(s), got, ok)
	}
	m.Root = &VaultRoot{Mode: 0o700, UID: 1000, GID: 50}
	m.Dirs[1] = 0o777
	if got, ok := parseDescription(formatDescription(m)); !ok || len(got.Dirs) != 2 || got.Dirs[1] != 0o700 || m.Dirs[1] != 0o777 {
		t.Errorf("below a directory that is not told, and keeps others out: %+v, %v", got, ok)
	}
	m.Root.Mode = 0o2750
	m.Path = strings.Repeat("long/", 400) + "f"
	m.Dirs = nil
	if got, ok := parseDescription(formatDescription(m)); !ok || got.Root != nil || !got.Cut || got.Mode != 0o640 {
		t.Errorf("a path that is cut: %+v, %v", got, ok)
	}
	for _, bad := range []string{
		"755", "755.1.2", "755.1.2.3.4", "10755.1.2.3", "758.1.2.3", "755.-1.2.3", "755.1.4294967296.3", "755.4294967295.2.3", "755.1.4294967295.3",
		"755.1.2.", "755.1.2.x", "", "...",
	} {
		if got, ok := parseDescription(strings.Replace(plain, " path=", " root="+bad+" path=", 1)); ok {
			t.Errorf("root=%s was taken for %+v", bad, got.Root)
		}
	}
	for _, is := range []string{" uid=1000 ", " gid=100 "} {
		none := strings.Split(is, "=")[0] + "=4294967295 "
		if got, ok := parseDescription(strings.Replace(plain, is, none, 1)); ok {
			t.Errorf("%s was taken for %+v", none, got)
		}
	}
}
