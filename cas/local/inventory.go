package local

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
)

const maxInventory = 10000 // archives of one inventory

func inventoryJob(j *jobSpec, q *jobRequest) error {
	switch q.Format {
	case "", "JSON":
		j.Format = "JSON"
	case "CSV":
		j.Format = "CSV"
	default:
		return invalid("Format must be JSON or CSV")
	}
	p := q.InventoryRetrievalParameters
	var err error
	if j.Start, err = parseDate("StartDate", p.StartDate); err != nil {
		return err
	}
	if j.Until, err = parseDate("EndDate", p.EndDate); err != nil {
		return err
	}
	if j.Start != 0 && j.Until != 0 && j.Start > j.Until {
		return invalid("StartDate is after EndDate")
	}
	if p.Limit != "" {
		n, err := strconv.Atoi(string(p.Limit))
		if err != nil || n < 1 || n > maxInventory {
			return invalid("Limit must be between 1 and %d", maxInventory)
		}
		j.Limit = n
	}
	if _, err := parseSeqMarker(p.Marker); err != nil {
		return err
	}
	j.Marker = p.Marker
	return nil
}

func parseDate(name, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || t.Year() < 1970 {
		return 0, invalid("%s must be a date like 2017-02-28T17:03:43Z", name)
	}
	return millis(t), nil
}

func (v *vault) outputPath(id string) string { return filepath.Join(v.dir, "jobs", id) }

// takeInventory writes the output of an inventory job: the archives as of the
// stock-taking that precedes the job's end, in the order they were made.
func (v *vault) takeInventory(j *job) (*jobEnd, error) {
	limit := j.Limit
	if limit == 0 {
		limit = maxInventory
	}
	from, err := parseSeqMarker(j.Marker)
	if err != nil {
		return nil, err
	}
	end := &jobEnd{}
	v.mu.Lock()
	now := v.s.nowMillis()
	at, _ := v.stockTaking(min(j.Ready, now))
	list := make([]*archive, 0, min(limit, len(v.order)))
	i := sort.Search(len(v.order), func(i int) bool { return v.order[i].seq >= from })
	for _, a := range v.order[i:] {
		if !a.listedAt(at, now) || j.Start != 0 && a.created < j.Start || j.Until != 0 && a.created > j.Until {
			continue
		}
		if len(list) == limit {
			end.Marker = *seqMarker(a.seq)
			break
		}
		list = append(list, a)
	}
	v.mu.Unlock()
	if at == 0 {
		at = v.created // before the first stock-taking: empty
	}

	f, err := os.Create(v.outputPath(j.ID))
	if err != nil {
		return nil, err
	}
	bw := bufio.NewWriterSize(f, 64<<10)
	if j.Format == "CSV" {
		writeCSV(bw, list)
	} else {
		writeJSON(bw, v.qcs(), at, list)
	}
	err = bw.Flush()
	if err == nil {
		end.Size, err = f.Seek(0, io.SeekCurrent)
	}
	if err == nil {
		err = v.s.syncFile(f)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = v.s.syncDir(filepath.Dir(f.Name()))
	}
	return end, err
}

func writeJSON(w *bufio.Writer, qcs string, at int64, list []*archive) {
	fmt.Fprintf(w, `{"VaultQCS":%s,"InventoryDate":"%s","ArchiveList":[`, jsonString(qcs), formatTime(at))
	for i, a := range list {
		if i > 0 {
			w.WriteByte(',')
		}
		fmt.Fprintf(w, `{"ArchiveId":"%s","ArchiveDescription":%s,"CreationDate":"%s","Size":%d,"SHA256TreeHash":"%s"}`,
			a.id, jsonString(a.desc), formatTime(a.created), a.size, a.tree)
	}
	w.WriteString("]}\n")
}

func jsonString(s string) string {
	var sb strings.Builder
	enc := json.NewEncoder(&sb)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string always encodes
	}
	return strings.TrimSuffix(sb.String(), "\n")
}

// writeCSV writes a header row and quotes as Glacier does: an inner quote
// becomes \", a backslash stays alone.
func writeCSV(w *bufio.Writer, list []*archive) {
	w.WriteString("ArchiveId,ArchiveDescription,CreationDate,Size,SHA256TreeHash\n")
	for _, a := range list {
		desc := a.desc
		if strings.ContainsAny(desc, `,"`) {
			desc = `"` + strings.ReplaceAll(desc, `"`, `\"`) + `"`
		}
		fmt.Fprintf(w, "%s,%s,%s,%d,%s\n", a.id, desc, formatTime(a.created), a.size, a.tree)
	}
}
