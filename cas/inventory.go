package cas

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// InventoryEntry is one archive of an inventory.
type InventoryEntry struct {
	ArchiveID    string
	Description  string
	CreationDate time.Time
	Size         int64
	TreeHash     Hash
}

// InventoryHeader is what precedes or follows the list.
type InventoryHeader struct {
	VaultQCS string
	Date     time.Time
}

// maxRecord bounds one entry: the description has at most 1024 bytes, each of
// which JSON may write as six.
const maxRecord = 64 << 10

// maxBroken bounds a CSV row that goes over several lines, which is tried again after each.
const maxBroken = 8 << 10

// DecodeInventory reads an inventory (JSON, or CSV with or without a header
// row) and calls each for every entry, in constant memory. An error of each ends it and is returned;
// what is no inventory, or ends early, is an error matching ErrProtocol, after
// the entries before the fault. CSV has no header: the InventoryHeader is zero.
func DecodeInventory(r io.Reader, each func(InventoryEntry) error) (InventoryHeader, error) {
	br := bufio.NewReaderSize(r, maxRecord)
	if b, err := br.Peek(3); err == nil && string(b) == "\ufeff" {
		br.Discard(3)
	}
	for {
		b, err := br.ReadByte()
		switch {
		case err == io.EOF:
			return InventoryHeader{}, notInventory(io.ErrUnexpectedEOF)
		case err != nil:
			return InventoryHeader{}, fmt.Errorf("cas: reading an inventory: %w", err)
		case b == ' ', b == '\t', b == '\r', b == '\n':
			continue
		}
		br.UnreadByte()
		if b == '{' {
			return decodeJSONInventory(br, each)
		}
		return InventoryHeader{}, decodeCSVInventory(br, each)
	}
}

func notInventory(err error) error {
	return fmt.Errorf("cas: inventory: %w: %w", ErrProtocol, err)
}

type wireEntry struct {
	ArchiveID          flexString `json:"ArchiveId"`
	ArchiveDescription flexString
	CreationDate       flexTime
	Size               flexInt
	SHA256TreeHash     flexHash
}

func (w *wireEntry) entry() (InventoryEntry, error) {
	switch {
	case w.ArchiveID == "":
		return InventoryEntry{}, errors.New("an archive without an id")
	case !w.Size.set || w.Size.n < 0:
		return InventoryEntry{}, fmt.Errorf("archive %.200q without a size", string(w.ArchiveID))
	}
	return InventoryEntry{
		ArchiveID: string(w.ArchiveID), Description: string(w.ArchiveDescription),
		CreationDate: w.CreationDate.Time, Size: w.Size.n, TreeHash: w.SHA256TreeHash.Hash,
	}, nil
}

// limitedReader lets a decoder that buffers one value fail instead of filling
// the memory: budget is renewed for every value.
type limitedReader struct {
	r      io.Reader
	budget int64
	err    error // of r, other than its end
}

var errLongRecord = errors.New("a single value is too long")

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.budget <= 0 {
		return 0, errLongRecord
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.budget)])
	l.budget -= int64(n)
	if err != nil && err != io.EOF {
		l.err = err
	}
	return n, err
}

func decodeJSONInventory(r io.Reader, each func(InventoryEntry) error) (InventoryHeader, error) {
	var h InventoryHeader
	in := &limitedReader{r: r}
	d := json.NewDecoder(in)
	var own error // of each
	// The decoder reads ahead by no more than it holds: this never stops a legal value.
	renew := func() { in.budget = 8 * maxRecord }
	token := func() (json.Token, error) {
		renew()
		return d.Token()
	}
	decode := func(v any) error {
		renew()
		return d.Decode(v)
	}
	more := func() bool {
		renew()
		return d.More()
	}
	list := func() error {
		t, err := token()
		if err != nil || t == nil { // null: an empty list
			return err
		}
		if t != json.Delim('[') {
			return fmt.Errorf("ArchiveList is %v", t)
		}
		for more() {
			var w wireEntry
			if err := decode(&w); err != nil {
				return err
			}
			e, err := w.entry()
			if err != nil {
				return err
			}
			if own = each(e); own != nil {
				return own
			}
		}
		_, err = token()
		return err
	}
	document := func() error {
		if _, err := token(); err != nil {
			return err
		}
		seen := false
		for more() {
			key, err := token()
			if err != nil {
				return err
			}
			switch k, _ := key.(string); {
			case strings.EqualFold(k, "ArchiveList"):
				seen = true
				err = list()
			case strings.EqualFold(k, "VaultQCS"):
				err = decode((*flexString)(&h.VaultQCS))
			case strings.EqualFold(k, "InventoryDate"):
				var t flexTime
				err = decode(&t)
				h.Date = t.Time
			default:
				err = skipValue(token)
			}
			if err != nil {
				return err
			}
		}
		if _, err := token(); err != nil {
			return err
		}
		if !seen {
			return errors.New("no ArchiveList")
		}
		return nil
	}
	err := document()
	switch {
	case err == nil || own != nil:
		return h, err
	case in.err != nil:
		return h, fmt.Errorf("cas: reading an inventory: %w", in.err)
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return h, notInventory(err)
}

// skipValue passes over one value of any size without holding it.
func skipValue(token func() (json.Token, error)) error {
	for depth := 0; ; {
		t, err := token()
		if err != nil {
			return err
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

// decodeCSVInventory reads Glacier's dialect (cas-api.md §8): an inner quote is
// written \", a backslash is not escaped, so where a quoted description ends is ambiguous
// from the left. All other columns have a fixed form: rows are taken apart from both ends.
func decodeCSVInventory(r *bufio.Reader, each func(InventoryEntry) error) error {
	columns := 0 // not known yet
	var row []byte
	for line := 1; ; line++ {
		text, err := r.ReadSlice('\n')
		if err == bufio.ErrBufferFull || len(row) > 0 && len(row)+len(text) > maxBroken {
			return notInventory(fmt.Errorf("line %d: %w", line, errLongRecord))
		}
		if err != nil && err != io.EOF {
			return fmt.Errorf("cas: reading an inventory: %w", err)
		}
		row = append(row, text...)
		rec := bytes.TrimRight(row, "\r\n")
		switch {
		case len(rec) == 0:
			row = row[:0]
		case columns == 0 && bytes.HasPrefix(bytes.ToLower(bytes.Trim(rec, `" `)), []byte("archiveid")):
			if columns = csvHeader(string(rec)); columns == 0 {
				return notInventory(fmt.Errorf("columns %.200q", rec))
			}
			row = row[:0]
		default:
			e, n, ok := csvRow(string(rec), columns)
			if ok {
				columns = n
				row = row[:0]
				if err := each(e); err != nil {
					return err
				}
				break
			}
			// A description may contain line breaks.
			if err == io.EOF || bytes.IndexByte(row, '"') < 0 {
				return notInventory(fmt.Errorf("line %d: %.200q", line, rec))
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

func csvHeader(s string) int {
	names := strings.Split(strings.ToLower(strings.ReplaceAll(s, `"`, "")), ",")
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
	}
	switch strings.Join(names, ",") {
	case "archiveid,archivedescription,creationdate,size,sha256treehash":
		return 5
	case "archiveid,archivedescription,creationdate,size":
		return 4
	}
	return 0
}

// csvRow takes a whole row apart; columns 0 tries five, then four.
func csvRow(s string, columns int) (e InventoryEntry, n int, ok bool) {
	if columns == 0 {
		if e, n, ok = csvRow(s, 5); ok {
			return e, n, ok
		}
		return csvRow(s, 4)
	}
	last := func() (string, bool) {
		i := strings.LastIndexByte(s, ',')
		if i < 0 {
			return "", false
		}
		f := strings.TrimSpace(s[i+1:])
		s = s[:i]
		if len(f) >= 2 && f[0] == '"' && f[len(f)-1] == '"' {
			f = f[1 : len(f)-1]
		}
		return f, true
	}
	if columns == 5 {
		f, ok := last()
		h, err := ParseHash(f)
		if !ok || err != nil {
			return e, 0, false
		}
		e.TreeHash = h
	}
	f, ok := last()
	size, err := parseOffset(f)
	if !ok || err != nil {
		return e, 0, false
	}
	e.Size = size
	if f, ok = last(); !ok || f == "" {
		return e, 0, false
	}
	if e.CreationDate, err = parseTime(f); err != nil {
		return e, 0, false
	}
	id, desc, ok := strings.Cut(s, ",")
	id = strings.Trim(strings.TrimSpace(id), `"`)
	if !ok || id == "" || strings.ContainsAny(id, "\"\r\n") {
		return e, 0, false
	}
	e.ArchiveID = id
	if desc != "" && desc[0] == '"' {
		if len(desc) < 2 || desc[len(desc)-1] != '"' {
			return e, 0, false // goes on in the next line
		}
		desc = strings.NewReplacer(`\"`, `"`, `""`, `"`).Replace(desc[1 : len(desc)-1])
	} else if strings.ContainsAny(desc, "\r\n") {
		return e, 0, false
	}
	e.Description = desc
	return e, columns, true
}
