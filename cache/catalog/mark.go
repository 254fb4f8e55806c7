package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4/table"
	"golang.org/x/sync/errgroup"
)

// mark is what is known outside journal and badger, so that the loss of either
// shows: the journal never ends before Seq, and the files of a clean index are
// exactly those listed. The file holds one line of JSON and its CRC-32C in
// hexadecimal.
type mark struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Seq     uint64    `json:"seq"`             // was on stable storage when this was written
	Clean   bool      `json:"clean"`           // nothing was changed since the index was closed at Seq
	Index   []fileSum `json:"index,omitempty"` // when clean
}

const markVersion = 1

// fileSum identifies the content of a file of the index.
type fileSum struct {
	Name  string    `json:"name"`
	Size  int64     `json:"size"`
	CRC   uint32    `json:"crc32c"`
	mtime time.Time // saves reading a table again that this process has read or written
}

// writeMark stores durably how far the journal is stable.
func (c *Catalog) writeMark() error {
	c.marking.Lock()
	defer c.marking.Unlock()
	return c.putMark(mark{Seq: c.j.Durable()})
}

// writeCleanMark notes that the index, which is closed, holds everything up to seq, and what its files are.
func (c *Catalog) writeCleanMark(seq uint64) error {
	sums, err := sumIndex(c.path("index"), c.sums, true)
	if err != nil {
		return err
	}
	c.marking.Lock()
	defer c.marking.Unlock()
	return c.putMark(mark{Seq: seq, Clean: true, Index: sums})
}

func (c *Catalog) putMark(m mark) error {
	m.Version, m.ID = markVersion, c.id
	b, err := json.Marshal(&m)
	if err != nil {
		return err
	}
	b = fmt.Appendf(b, "\n%08x\n", crc32.Checksum(b, castagnoli))
	return writeFile(c.path("mark"), b)
}

// readMark returns nil when there is none, an error when it cannot be trusted.
func (c *Catalog) readMark() (*mark, error) {
	b, err := os.ReadFile(c.path("mark"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	line, sum, _ := bytes.Cut(b, []byte("\n"))
	if string(sum) != fmt.Sprintf("%08x\n", crc32.Checksum(line, castagnoli)) {
		return nil, fmt.Errorf("%w: mark fails its checksum", ErrDamaged)
	}
	m := new(mark)
	if err := json.Unmarshal(line, m); err != nil {
		return nil, fmt.Errorf("%w: mark: %w", ErrDamaged, err)
	}
	if m.Version > markVersion {
		return nil, fmt.Errorf("%w: mark has version %d", ErrFormat, m.Version)
	}
	return m, nil
}

// writeFormat notes that a catalog lives here: from now on a missing journal is a loss.
func (c *Catalog) writeFormat() error {
	return writeFile(c.path("format"), fmt.Appendf(nil, "casfs-catalog %d %s\n", formatVersion, c.id))
}

const formatVersion = 1

// readFormat reports whether a catalog was completed here.
func (c *Catalog) readFormat() (bool, error) {
	b, err := os.ReadFile(c.path("format"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	f := strings.Fields(string(b))
	if len(f) != 3 || f[0] != "casfs-catalog" {
		c.log.Error("catalog format file is unreadable; it will be written again", "content", string(b))
		c.formatSpoilt = true
		c.damage = append(c.damage, fmt.Sprintf("%s was unreadable and has been written again", c.path("format")))
		return true, nil
	}
	if v, err := strconv.Atoi(f[1]); err != nil || v > formatVersion {
		return true, fmt.Errorf("%w: %s has version %s", ErrFormat, c.path("format"), f[1])
	}
	return true, nil
}

// writeFile replaces a file durably.
func writeFile(path string, b []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// sumIndex reads every file of a closed index. Tables never change, so those
// that known has with the same size and time are not read again. With verify the others must pass
// their own checksums (errBadTable): from then on the sum vouches for them, and badger need not look at
// them when it opens.
func sumIndex(dir string, known map[string]fileSum, verify bool) ([]fileSum, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	sums := make([]fileSum, 0, len(entries))
	for _, e := range entries {
		if e.Name() == "LOCK" { // pid of the last process; badger ignores what is left of it
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		sums = append(sums, fileSum{Name: e.Name(), Size: info.Size(), mtime: info.ModTime()})
	}
	var g errgroup.Group
	g.SetLimit(min(runtime.GOMAXPROCS(0), 4)) // each may hold a table in memory
	for i := range sums {
		s := &sums[i]
		isTable := strings.HasSuffix(s.Name, ".sst")
		if k, ok := known[s.Name]; ok && isTable && k.Size == s.Size && k.mtime.Equal(s.mtime) {
			s.CRC = k.CRC
			continue
		}
		g.Go(func() (err error) {
			name := filepath.Join(dir, s.Name)
			if verify && isTable {
				s.CRC, err = sumTable(name)
			} else {
				s.CRC, err = sumFile(name)
			}
			return err
		})
	}
	return sums, g.Wait()
}

func sumFile(name string) (uint32, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	h := crc32.New(castagnoli)
	_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return h.Sum32(), err
}

// errBadTable is a table whose blocks fail their checksums.
var errBadTable = errors.New("table is damaged")

// sumTable is sumFile of a table that is to pass its own checksums.
func sumTable(name string) (sum uint32, err error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s: badger panics: %v", errBadTable, name, p)
		}
	}()
	id, ok := table.ParseFileID(name)
	if !ok {
		return 0, fmt.Errorf("%w: %s is no table's name", errBadTable, name)
	}
	t, err := table.OpenInMemoryTable(b, id, &table.Options{})
	if err == nil {
		err = t.VerifyChecksum()
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %s: %w", errBadTable, name, err)
	}
	return crc32.Checksum(b, castagnoli), nil
}

// compareIndex checks the index's files against a clean mark and says how they differ, "" for not at all.
func compareIndex(m *mark, sums []fileSum) string {
	found := make(map[string]fileSum, len(sums))
	for _, s := range sums {
		found[s.Name] = s
	}
	for _, want := range m.Index {
		got, ok := found[want.Name]
		delete(found, want.Name)
		switch {
		case !ok:
			return want.Name + " is missing"
		case got.Size != want.Size:
			return fmt.Sprintf("%s has %d bytes instead of %d", want.Name, got.Size, want.Size)
		case got.CRC != want.CRC:
			return want.Name + " was changed"
		}
	}
	for name := range found {
		return name + " does not belong to it"
	}
	return ""
}
