package cas

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// FetchJobFile fetches the output of a finished job to path, like FetchJob.
// Bytes go to path.casfs-part, and verified ranges are noted beside it in path.casfs-part.state
// once they are on the disk; after a failure or a kill the next call, also with a newer job for the
// same range of the same archive, checks what is noted and fetches the rest. Only the complete,
// verified file gets its name. An existing one is an error matching fs.ErrExist
// unless o.Force. Inventories start anew every time.
func (c *Client) FetchJobFile(ctx context.Context, vault, jobID, path string, o FetchOptions) (_ FetchResult, err error) {
	if err := checkTarget(path, o.Force); err != nil {
		return FetchResult{}, err
	}
	job, err := c.readyJob(ctx, vault, jobID)
	if err != nil {
		return FetchResult{}, err
	}
	p, err := c.plan(ctx, vault, job, o)
	if err != nil {
		return FetchResult{}, err
	}
	part, err := openPart(path + partSuffix)
	if err != nil {
		return FetchResult{}, err
	}
	defer part.Close()
	state, skipped, err := c.resumePart(ctx, p, part, path+stateSuffix)
	if err != nil {
		return FetchResult{}, err
	}
	defer state.Close()
	if err := part.Truncate(p.size); err != nil {
		return FetchResult{}, err
	}

	rec := newRecorder(part, state)
	err = c.fetchPieces(ctx, p, part, func(i int) error { return rec.done(p.pieces[i]) })
	if rerr := rec.close(); err == nil {
		err = rerr
	}
	if err != nil {
		return FetchResult{}, err
	}
	res, err := p.result()
	if err != nil {
		// Every range was as announced and yet the whole is not: none of them can be relied on.
		os.Remove(path + stateSuffix)
		return FetchResult{}, err
	}
	res.Skipped = skipped
	if err := part.Sync(); err != nil {
		return FetchResult{}, err
	}
	if err := publish(path+partSuffix, path, o.Force); err != nil {
		return FetchResult{}, err
	}
	os.Remove(path + stateSuffix)
	return res, syncDir(filepath.Dir(path))
}

func checkTarget(path string, force bool) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.IsDir() || !force:
		return &fs.PathError{Op: "fetch", Path: path, Err: fs.ErrExist}
	}
	return nil
}

// openPart opens and locks the file that is being filled.
func openPart(name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o666)
		if err != nil {
			return nil, err
		}
		if err := lockFile(f); err != nil {
			f.Close()
			return nil, fmt.Errorf("cas: %s is being written by another process: %w", name, err)
		}
		// Another process may have finished it, and given it its final name, between opening and locking.
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if there, err := os.Stat(name); err == nil && os.SameFile(mine, there) {
			return f, nil
		}
		f.Close()
	}
}

// partState is the first line of the state file: what the part file is of.
type partState struct {
	Version int    `json:"casfs_part"`
	Vault   string `json:"vault"`
	Archive string `json:"archive"`
	Range   string `json:"range"`
	Size    int64  `json:"size"`
	Tree    Hash   `json:"tree"`
	Part    int64  `json:"part"`
}

// resumePart sets p.pieces, with hashes for what an earlier run left behind
// and is still right, and opens the state file for appending.
func (c *Client) resumePart(ctx context.Context, p *fetchPlan, part *os.File, name string) (*os.File, int64, error) {
	tree := p.job.TreeHash
	if tree.IsZero() {
		tree = p.job.ArchiveTreeHash
	}
	want := partState{
		Version: 1, Vault: p.vault, Archive: p.job.ArchiveID,
		Range: p.retrieved().String(), Size: p.size, Tree: tree, Part: p.part,
	}
	noted := map[Range]Hash{}
	again := false
	if p.job.Type == ArchiveRetrieval {
		var have partState
		have, noted = readState(name)
		want.Part = have.Part // an earlier run's choice stays
		if again = have == want && have.Part >= ChunkSize && have.Part <= MaxPartSize; !again {
			if len(noted) > 0 {
				c.log.Warn("what an earlier fetch left is of something else and is dropped", "file", part.Name())
			}
			want.Part, noted = p.part, nil
		}
		p.part = want.Part
	}
	p.pieces = p.cut(Range{0, p.size})
	var skipped int64
	for i := range p.pieces {
		pc := &p.pieces[i]
		h, ok := noted[pc.Range]
		if !ok {
			continue
		}
		got, err := TreeHashReaderAt(ctx, io.NewSectionReader(part, pc.Off, pc.Len), pc.Len, 0)
		if ctx.Err() != nil {
			return nil, 0, ctxErr(ctx)
		}
		if err != nil || got != h || h.IsZero() {
			c.log.Warn("a range on the disk is damaged and will be fetched again", "file", part.Name(), "range", pc.Range.String())
			continue
		}
		pc.hash = h
		skipped += pc.Len
		p.prog.add(pc.Len)
	}
	// What is still right is never written anew: a kill meanwhile would lose it.
	flags, head := os.O_WRONLY|os.O_CREATE|os.O_APPEND, []byte("\n") // ends a torn line
	if !again {
		flags |= os.O_TRUNC
		line, err := json.Marshal(want)
		if err != nil {
			return nil, 0, err
		}
		head = append(line, '\n')
	}
	f, err := os.OpenFile(name, flags, 0o666)
	if err != nil {
		return nil, 0, err
	}
	if _, err := f.Write(head); err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, skipped, nil
}

func stateLine(p piece) string { return p.Range.String() + " " + p.hash.String() + "\n" }

// readState tolerates everything: what it cannot read was not fetched. Of
// several notes about a range the last counts.
func readState(name string) (partState, map[Range]Hash) {
	var st partState
	noted := map[Range]Hash{}
	f, err := os.Open(name)
	if err != nil {
		return st, noted
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	if !sc.Scan() || json.Unmarshal(sc.Bytes(), &st) != nil {
		return partState{}, noted
	}
	for sc.Scan() {
		span, hash, _ := strings.Cut(sc.Text(), " ")
		r, err := ParseRange(span, 0)
		h, herr := ParseHash(hash)
		if err == nil && herr == nil {
			noted[r] = h
		}
	}
	return st, noted
}

// recorder notes pieces after it has brought them to the disk, as many at a
// time as are waiting.
type recorder struct {
	part, state *os.File
	in          chan note
	end         chan struct{}
	err         error
}

type note struct {
	piece
	ok chan<- struct{}
}

func newRecorder(part, state *os.File) *recorder {
	r := &recorder{part: part, state: state, in: make(chan note), end: make(chan struct{})}
	go r.run()
	return r
}

func (r *recorder) run() {
	defer close(r.end)
	for n := range r.in {
		batch := []note{n}
	more:
		for {
			select {
			case n, ok := <-r.in:
				if !ok {
					break more
				}
				batch = append(batch, n)
			default:
				break more
			}
		}
		if r.err = r.part.Sync(); r.err != nil {
			return
		}
		var lines string
		for _, n := range batch {
			lines += stateLine(n.piece)
		}
		if _, r.err = r.state.WriteString(lines); r.err != nil {
			return
		}
		for _, n := range batch {
			close(n.ok)
		}
	}
}

// done returns when p is noted: a kill costs no more than what is in flight.
func (r *recorder) done(p piece) error {
	ok := make(chan struct{})
	select {
	case r.in <- note{p, ok}:
	case <-r.end:
		return r.err
	}
	select {
	case <-ok:
		return nil
	case <-r.end:
	}
	select {
	case <-ok:
		return nil
	default:
		return r.err
	}
}

// close ends the recorder; nobody may be in done.
func (r *recorder) close() error {
	close(r.in)
	<-r.end
	return r.err
}

// publish gives the part its name. A hard link, unlike a rename, never replaces anything.
func publish(part, path string, force bool) error {
	if !force {
		err := os.Link(part, path)
		switch {
		case err == nil:
			return os.Remove(part)
		case errors.Is(err, fs.ErrExist):
			return err
		}
		// No hard links on this file system.
		if err := checkTarget(path, false); err != nil {
			return err
		}
	}
	return os.Rename(part, path)
}

// syncDir makes a new name durable, where directories can be synced.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrInvalid) {
		return err
	}
	return nil
}
