package local

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
)

func (s *Store) jobOutput(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	j, err := v.liveJob(r.http.Context(), r.item)
	if err != nil {
		return err
	}
	v.mu.Lock()
	done, _, fail := j.outcome(s.nowMillis())
	a := v.archives[j.Archive]
	end := j.end
	v.mu.Unlock()
	switch {
	case !done:
		return invalid("the job is still in progress")
	case fail != "":
		return invalid("the job failed: %s", fail)
	}

	var path, ctype string
	var base, size int64 // the output is size bytes of the file at base
	switch j.Type {
	case "archive-retrieval":
		if a == nil {
			return noJob(j.ID)
		}
		path, base, size, ctype = v.archivePath(a.shard, a.id), j.First, j.End-j.First, "application/octet-stream"
		if a.desc != "" {
			r.header("X-Cas-Archive-Description", a.desc)
		}
	case "inventory-retrieval":
		path, size, ctype = v.outputPath(j.ID), end.Size, "application/json"
		if j.Format == "CSV" {
			ctype = "text/csv"
		}
	default:
		return invalid("a %s job has no output", j.Type)
	}

	first, last := int64(0), size
	status := http.StatusOK
	if h := r.http.Header.Get("Range"); h != "" {
		var ok, satisfiable bool
		if first, last, ok, satisfiable = parseOutputRange(h, size); !ok {
			return invalid("Range must be bytes=FIRST-LAST, not %.64q", h)
		} else if !satisfiable {
			return refuse(http.StatusRequestedRangeNotSatisfiable, "InvalidParameterValueException",
				"Range %.64q is outside of the output's %d bytes", h, size)
		}
		status = http.StatusPartialContent
	}
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		if err := v.log.there(); err != nil {
			return err
		}
		s.logger.Error("the bytes of an output are lost", "vault", v.name, "job", j.ID, "error", err)
		return noJob(j.ID)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return err
	case j.Type == "archive-retrieval" && st.Size() < base+last: // what is before that can be served
		s.logger.Error("an archive has lost its end", "file", path, "size", a.size, "left", st.Size())
		return badDigest("of the archive's %d bytes only %d are left: %d-%d are lost", a.size, st.Size(), max(base+first, st.Size()), base+last-1)
	case j.Type != "archive-retrieval" && st.Size() != size:
		s.logger.Error("an output is damaged", "file", path, "size", size, "left", st.Size())
		return noJob(j.ID) // another can be made
	}
	if j.Type == "archive-retrieval" && !j.RangeTree.isZero() && treeAligned(base+first, base+last, j.Size) {
		tree, err := v.rangeTree(a, base+first, base+last, j)
		if errors.Is(err, errDamaged) {
			return badDigest("the archive and its leaf hashes are damaged")
		}
		if err != nil {
			return err
		}
		r.header("X-Cas-Sha256-Tree-Hash", tree.String())
	}
	if status == http.StatusPartialContent {
		r.header("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last-1, size))
	}
	r.header("Content-Type", ctype)
	r.header("Content-Length", strconv.FormatInt(last-first, 10))
	r.w.WriteHeader(status)
	s.send(r, f, base+first, last-first)
	return nil
}

// send copies n bytes of f at off to the client. After the head nothing can be
// said any more: a failing disk breaks the connection, so that the client does
// not take a short reply for the whole.
func (s *Store) send(r *request, f *os.File, off, n int64) {
	b := chunkBuffers.Get().(*[]byte)
	defer chunkBuffers.Put(b)
	for n > 0 {
		p := (*b)[:min(n, mib)]
		if _, err := f.ReadAt(p, off); err != nil {
			s.logger.Error("cannot read output", "file", f.Name(), "offset", off, "error", err)
			panic(http.ErrAbortHandler)
		}
		if _, err := r.w.Write(p); err != nil {
			return // the client went away
		}
		off += int64(len(p))
		n -= int64(len(p))
	}
}
