package cas

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

var (
	invHash = strings.Repeat("0123456789abcdef", 4)
	invTime = "2017-08-28T08:29:41.000Z"
)

func entry(id, desc string, size int64) InventoryEntry {
	h, _ := ParseHash(invHash)
	return InventoryEntry{id, desc, time.Date(2017, 8, 28, 8, 29, 41, 0, time.UTC), size, h}
}

func decodeAll(s string) (h InventoryHeader, es []InventoryEntry, err error) {
	h, err = DecodeInventory(iotest.OneByteReader(strings.NewReader(s)), func(e InventoryEntry) error {
		es = append(es, e)
		return nil
	})
	return h, es, err
}

func TestDecodeInventory(t *testing.T) {
	j := func(id, desc, size string) string {
		return fmt.Sprintf(`{"ArchiveId":%q,"ArchiveDescription":%s,"CreationDate":%q,"Size":%s,"SHA256TreeHash":%q}`, id, desc, invTime, size, invHash)
	}
	head := InventoryHeader{"qcs:v", time.Date(2017, 8, 29, 1, 0, 0, 0, time.UTC)}
	row := func(id, desc string) string { return id + "," + desc + "," + invTime + ",20," + invHash }
	const columns = "ArchiveId,ArchiveDescription,CreationDate,Size,SHA256TreeHash\n"
	bare := entry("A", "d", 20)
	bare.TreeHash = Hash{}
	for _, x := range []struct {
		name, in string
		head     InventoryHeader
		want     []InventoryEntry
	}{
		{"json", `{"VaultQCS":"qcs:v","InventoryDate":"2017-08-29T01:00:00.000Z","ArchiveList":[` + j("A", `"d"`, "20") + "," + j("B", `"\u5f52"`, `"21"`) + "]}",
			head, []InventoryEntry{entry("A", "d", 20), entry("B", "归", 21)}},
		{"list first, unknown keys, byte order mark", "\ufeff \n" + `{"X":{"a":[1,{"b":[]}],"ArchiveList":3},"archivelist":[` + j("A", "null", "1e1") + `],"Y":null,"VaultQCS":"qcs:v","InventoryDate":"2017-08-29T01:00:00Z"}`,
			head, []InventoryEntry{entry("A", "", 10)}},
		{"empty vault", `{"VaultQCS":"qcs:v","InventoryDate":"2017-08-29T01:00:00.000Z","ArchiveList":[]}`, head, nil},
		{"null list", `{"VaultQCS":"qcs:v","InventoryDate":null,"ArchiveList":null}`, InventoryHeader{VaultQCS: "qcs:v"}, nil},
		{"csv", columns + row("A", "d") + "\r\n" + row("B", "") + "\n\n" + row("C", `"x, \"y\""`), InventoryHeader{},
			[]InventoryEntry{entry("A", "d", 20), entry("B", "", 20), entry("C", `x, "y"`, 20)}},
		{"csv without header", row("A", `"d"`) + "\n", InventoryHeader{}, []InventoryEntry{entry("A", "d", 20)}},
		{"csv, quoted header", `"ArchiveId","ArchiveDescription","CreationDate","Size","SHA256TreeHash"` + "\n" + `"A","d","` + invTime + `","20","` + strings.ToUpper(invHash) + `"`,
			InventoryHeader{}, []InventoryEntry{entry("A", "d", 20)}},
		{"csv, backslash at the end", row("A", `"C:\dir\"`) + "\n" + row("B", `"\"a\",\"b\""`) + "\n" + row("-C", `"rfc ""4180"""`), InventoryHeader{},
			[]InventoryEntry{entry("A", `C:\dir\`, 20), entry("B", `"a","b"`, 20), entry("-C", `rfc "4180"`, 20)}},
		{"csv, line breaks", row("A", "\"one\ntwo, three\r\nfour\"") + "\n" + row("B", "d"), InventoryHeader{},
			[]InventoryEntry{entry("A", "one\ntwo, three\r\nfour", 20), entry("B", "d", 20)}},
		{"csv, four columns", "ArchiveId,ArchiveDescription,CreationDate,Size\nA,d," + invTime + ",20\n", InventoryHeader{}, []InventoryEntry{bare}},
		{"csv, four columns without header", "A,d," + invTime + ",20\n", InventoryHeader{}, []InventoryEntry{bare}},
		{"csv, header only", columns, InventoryHeader{}, nil},
	} {
		h, es, err := decodeAll(x.in)
		if err != nil || h != x.head || !slices.Equal(es, x.want) {
			t.Errorf("%s: %v %+v %v\nwant %v %+v", x.name, h, es, err, x.head, x.want)
		}
	}
	whole := `{"VaultQCS":"qcs:v","ArchiveList":[` + j("A", `"d"`, "20") + "]}"
	for n := range len(whole) {
		if _, _, err := decodeAll(whole[:n]); !errors.Is(err, ErrProtocol) {
			t.Errorf("cut after %d: %v, want ErrProtocol", n, err)
		}
	}
	for _, s := range []string{
		"", " ", "null", "[]", "hello", "<html>", "{}", `{"ArchiveList":{}}`, `{"ArchiveList":[{}]}`, `{"ArchiveList":[1]}`,
		`{"ArchiveList":[` + j("A", `"d"`, "-1") + `]}`, `{"ArchiveList":[` + j("A", `"d"`, "1.5") + `]}`, `{"ArchiveList":[` + j("", `"d"`, "1") + `]}`,
		"ArchiveId,Size\n", "A,d," + invTime + ",-20," + invHash, row("A", `"never ends`) + "\n" + row("B", "d"),
		`{"ArchiveList":[{"ArchiveId":"` + strings.Repeat("a", 2<<20) + `"}]}`, strings.Repeat("a", 2<<20),
	} {
		if _, _, err := decodeAll(s); !errors.Is(err, ErrProtocol) {
			t.Errorf("%.60q: %v, want ErrProtocol", s, err)
		}
	}
	boom := errors.New("boom")
	for _, s := range []string{whole, row("A", "d")} {
		if _, err := DecodeInventory(strings.NewReader(s), func(InventoryEntry) error { return boom }); err != boom {
			t.Errorf("each's error: %v", err)
		}
		if _, err := DecodeInventory(iotest.ErrReader(boom), nil); !errors.Is(err, boom) {
			t.Errorf("reader's error: %v", err)
		}
	}
}

// TestDecodeInventoryMemory decodes a stream far larger than what may be held.
func TestDecodeInventoryMemory(t *testing.T) {
	const entries = 20_000
	pr, pw := io.Pipe()
	go func() {
		e, _ := json.Marshal(map[string]any{"ArchiveId": strings.Repeat("x", 128), "ArchiveDescription": strings.Repeat("d", 500), "CreationDate": invTime, "Size": 1, "SHA256TreeHash": invHash})
		e = append(e, ',')
		io.WriteString(pw, `{"ArchiveList":[`)
		for range entries - 1 {
			pw.Write(e)
		}
		pw.Write(bytes.TrimSuffix(e, []byte(",")))
		io.WriteString(pw, "]}")
		pw.Close()
	}()
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var most uint64
	n := 0
	if _, err := DecodeInventory(pr, func(InventoryEntry) error {
		if n++; n%(entries/4) == 0 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc)
		}
		return nil
	}); err != nil || n != entries {
		t.Fatal(n, err)
	}
	if most > before.HeapAlloc+4<<20 {
		t.Errorf("%d bytes in use above the %d before", most-before.HeapAlloc, before.HeapAlloc)
	}
}

func FuzzDecodeInventory(f *testing.F) {
	for _, s := range []string{
		`{"VaultQCS":"q","InventoryDate":"2017-08-29T01:00:00.000Z","ArchiveList":[{"ArchiveId":"A","Size":1}]}`,
		"ArchiveId,ArchiveDescription,CreationDate,Size\nA,\"d\\\",\n\"," + invTime + ",20\n",
		`{"a":[[[[`, `"`, "{\"ArchiveList\":[\n", "A,\"\",2017-01-01,1," + invHash,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		_, err := DecodeInventory(bytes.NewReader(b), func(e InventoryEntry) error {
			if e.ArchiveID == "" || e.Size < 0 {
				t.Errorf("entry %+v", e)
			}
			n++
			return nil
		})
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("%v does not match ErrProtocol", err)
		}
		if n > len(b)/10 {
			t.Errorf("%d entries from %d bytes", n, len(b))
		}
	})
}
