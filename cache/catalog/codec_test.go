package catalog

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"testing"
)

// samples are records at their limits, by table.
var (
	sampleInode = Inode{
		Ino: math.MaxUint64 - 1, Vault: 1 << 63, Parent: 77, Mode: math.MaxUint32, UID: math.MaxUint32, GID: 1, Rdev: math.MaxUint32, Nlink: 65000,
		Size: math.MaxInt64, Atime: -1, Mtime: math.MinInt64, Ctime: math.MaxInt64, Btime: 1, Version: 9, Entries: -3, Target: "/a/\x00b\xff", Pinned: true,
	}
	sampleVersion = Version{
		Ino: 5, V: 6, State: Uploading, Local: 7, Complete: true, Damaged: true, Size: 1 << 40, Mtime: -5, TreeHash: [32]byte{1, 31: 2},
		Extents: []Extent{{1, 2, 3}, {math.MaxUint64, math.MaxInt64, math.MinInt64}}, StagedAt: 8, ArchivedAt: 9, Error: "quota",
	}
	sampleArchive = Archive{
		Num: 3, Vault: 4, VaultName: "v", ID: "id", Size: 5, TreeHash: [32]byte{9}, Created: 6, Description: "casfs1 …", Intent: "in",
		State: Trash, Deadline: 7, Ino: 8, V: 9, Misses: -1, Confirmed: 10,
	}
	sampleUpload = Upload{
		Intent: "intent", Ino: 1, V: 2, Seg: 3, Segs: 4, Off: 5, Size: 6, Vault: 7, VaultName: "v", State: Completing, UploadID: "u", PartSize: 16 << 20,
		Started: 8, Archive: 9, TreeHash: [32]byte{7}, Description: "d", Uncertain: true, Attempts: 10, Error: "e", Permanent: true,
	}
	sampleRetrieval = Retrieval{
		ID: 1, Archive: 2, VaultName: "v", Off: 3, Len: 4, Tier: "bulk", State: Failed, JobID: "j", Created: 5, AskedAt: 6, ReadyAt: 7, Expires: 8,
		Attempts: 9, Expired: 10, Explicit: true, Uncertain: true, Adopted: true, Ahead: true, Ino: 11, V: 12, Error: "e",
	}
	sampleVault = Vault{
		Ino: 1, Name: "n", QCS: "q", Created: 2, LastInventory: 3, Archives: -1, Bytes: 5, Merged: 6, InventoryJob: "j", InventoryMarker: "m", Gone: true,
	}
)

// codecs encode a sample and decode anything of its kind.
var codecs = []struct {
	name   string
	key    []byte
	sample any
	encode func(key []byte, v any) []byte
	decode func(key, b []byte) (any, error)
}{
	{"inode", key1(tInode, sampleInode.Ino), sampleInode,
		func(k []byte, v any) []byte { i := v.(Inode); return encodeInode(k, &i) },
		func(k, b []byte) (any, error) { return decodeInode(k, b) }},
	{"version", key2(tVersion, 5, 6), sampleVersion,
		func(k []byte, v any) []byte { i := v.(Version); return encodeVersion(k, &i) },
		func(k, b []byte) (any, error) { return decodeVersion(k, b) }},
	{"archive", key1(tArchive, 3), sampleArchive,
		func(k []byte, v any) []byte { i := v.(Archive); return encodeArchive(k, &i) },
		func(k, b []byte) (any, error) { return decodeArchive(k, b) }},
	{"upload", keyString(tUpload, "intent"), sampleUpload,
		func(k []byte, v any) []byte { i := v.(Upload); return encodeUpload(k, &i) },
		func(k, b []byte) (any, error) { return decodeUpload(k, b) }},
	{"retrieval", key1(tRetrieval, 1), sampleRetrieval,
		func(k []byte, v any) []byte { i := v.(Retrieval); return encodeRetrieval(k, &i) },
		func(k, b []byte) (any, error) { return decodeRetrieval(k, b) }},
	{"vault", key1(tVault, 1), sampleVault,
		func(k []byte, v any) []byte { i := v.(Vault); return encodeVault(k, &i) },
		func(k, b []byte) (any, error) { return decodeVault(k, b) }},
	{"name", keyName(tName, 7, "name"), Dirent{Parent: 7, Name: "name", Ino: 8, Type: sIFDIR, Cookie: 9},
		func(k []byte, v any) []byte { i := v.(Dirent); return encodeName(k, &i) },
		func(k, b []byte) (any, error) { return decodeName(k, b) }},
	{"entry", key2(tEntry, 7, 9), Dirent{Parent: 7, Name: "name", Ino: 8, Type: sIFDIR, Cookie: 9},
		func(k []byte, v any) []byte { i := v.(Dirent); return encodeEntry(k, &i) },
		func(k, b []byte) (any, error) { return decodeEntry(k, b) }},
	{"number", counterKey, uint64(math.MaxUint64),
		func(k []byte, v any) []byte { return encodeNumber(k, v.(uint64)) },
		func(k, b []byte) (any, error) { return decodeNumber(k, b) }},
	{"bytes", keyString(tMeta, "m"), []byte{0, 1, 255},
		func(k []byte, v any) []byte { return encodeBytes(k, v.([]byte)) },
		func(k, b []byte) (any, error) { return decodeBytes(k, b) }},
}

func TestCodecRoundTrip(t *testing.T) {
	for _, c := range codecs {
		for _, v := range []any{c.sample, reflect.Zero(reflect.TypeOf(c.sample)).Interface()} {
			b := c.encode(c.key, v)
			got, err := c.decode(c.key, b)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if again := c.encode(c.key, got); !bytes.Equal(again, b) {
				t.Errorf("%s: encoded again it differs: %x, %x", c.name, b, again)
			}
			if reflect.DeepEqual(v, c.sample) && !reflect.DeepEqual(got, v) {
				t.Errorf("%s: %+v, want %+v", c.name, got, v)
			}
		}
	}
	s := state{id: "x", seq: 9, stats: Stats{Inodes: 1, Files: 2, LiveBytes: 3, StagedFiles: 4, StagedBytes: -5, Seq: 9}}
	if got, err := decodeState(encodeState(&s)); err != nil || got != s {
		t.Errorf("state: %+v, %v", got, err)
	}
}

// Every field must reach the disk: a struct that got one more shows here.
func TestCodecCoversEveryField(t *testing.T) {
	for _, c := range codecs {
		v := reflect.ValueOf(c.sample)
		if v.Kind() != reflect.Struct {
			continue
		}
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("%s: the sample leaves %s zero", c.name, v.Type().Field(i).Name)
			}
		}
	}
}

func TestCodecRefuses(t *testing.T) {
	for _, c := range codecs {
		b := c.encode(c.key, c.sample)
		for i := range b {
			bad := bytes.Clone(b)
			bad[i] ^= 4
			if _, err := c.decode(c.key, bad); !errors.Is(err, ErrDamaged) {
				t.Fatalf("%s: byte %d flipped: %v, want ErrDamaged", c.name, i, err)
			}
			if _, err := c.decode(c.key, b[:i]); !errors.Is(err, ErrDamaged) {
				t.Fatalf("%s: cut to %d: %v, want ErrDamaged", c.name, i, err)
			}
		}
		other := bytes.Clone(c.key)
		other[len(other)-1] ^= 1
		if _, err := c.decode(other, b); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: under another key: %v, want ErrDamaged", c.name, err)
		}
		w := &writer{b: bytes.Clone(b[:len(b)-4])}
		w.b[0] = recordVersion + 1
		if _, err := c.decode(c.key, w.seal(c.key)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: newer version: %v, want ErrFormat", c.name, err)
		}
		w = &writer{b: append(bytes.Clone(b[:len(b)-4]), 0)}
		if _, err := c.decode(c.key, w.seal(c.key)); c.name != "bytes" && !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: a byte too many: %v, want ErrDamaged", c.name, err)
		}
	}
}

// FuzzDecode: whatever a record with a right checksum holds, decoding does not
// panic, and what it accepts it can store again.
func FuzzDecode(f *testing.F) {
	for i, c := range codecs {
		b := c.encode(c.key, c.sample)
		f.Add(i, b[1:len(b)-4])
	}
	f.Fuzz(func(t *testing.T, which int, fields []byte) {
		c := codecs[uint(which)%uint(len(codecs))]
		w := &writer{b: append([]byte{recordVersion}, fields...)}
		v, err := c.decode(c.key, w.seal(c.key))
		if err != nil {
			return
		}
		again, err := c.decode(c.key, c.encode(c.key, v))
		if err != nil || !reflect.DeepEqual(v, again) {
			t.Fatalf("%s: %+v became %+v, %v", c.name, v, again, err)
		}
	})
}
