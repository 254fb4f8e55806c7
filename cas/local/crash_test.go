package local

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/casfs/casfs/internal/noise"
)

// ledger is what a store that was killed has acknowledged.
type ledger struct {
	mu       sync.Mutex
	archives map[string][]byte         // id to bytes
	deleted  map[string]bool           // acknowledged as deleted
	asked    map[string]bool           // asked to be deleted, maybe done
	uploads  map[string]map[int][]byte // open uploads: acknowledged parts by offset
	vague    map[string]bool           // Complete sent, maybe done
}

// killer talks to one life of the server.
type killer struct {
	t    *testing.T
	s    Credentials
	base string
	http *http.Client
}

func (k *killer) do(method, path string, body []byte, h header) (*http.Response, error) {
	r, err := http.NewRequest(method, k.base+path, bytes.NewReader(body))
	if err != nil {
		k.t.Error(err)
		return nil, err
	}
	for n, v := range h {
		r.Header.Set(n, v)
	}
	r.Header.Set("Authorization", signer{k.s.SecretID, k.s.SecretKey, time.Now}.sign(method, path, nil, nil))
	resp, err := k.http.Do(r)
	if err != nil {
		return nil, err // killed
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil {
		return nil, err
	} else if resp.StatusCode >= 300 {
		k.t.Errorf("%s %s: %d %s", method, path, resp.StatusCode, b)
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return resp, nil
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := noise.Bytes(n, rng.Uint64())
	if n > 1<<20 && rng.IntN(2) == 0 {
		clear(b[:1<<20])
	}
	return b
}

// work does random things until the server dies.
func (k *killer) work(l *ledger, rng *rand.Rand) {
	for {
		switch rng.IntN(6) {
		case 0, 1, 2:
			n := 1 + rng.IntN(3000)
			if rng.IntN(4) == 0 {
				n = 1 + rng.IntN(3<<20)
			}
			b := randomBytes(rng, n)
			r, err := k.do("POST", "/-/vaults/v/archives", b, hashes(b))
			if err != nil {
				return
			}
			l.mu.Lock()
			l.archives[r.Header.Get("x-cas-archive-id")] = b
			l.mu.Unlock()
		case 3:
			l.mu.Lock()
			id := ""
			for id = range l.archives {
				break
			}
			if id != "" {
				delete(l.archives, id)
				l.asked[id] = true
			}
			l.mu.Unlock()
			if id == "" {
				continue
			}
			if _, err := k.do("DELETE", "/-/vaults/v/archives/"+id, nil, nil); err != nil {
				return
			}
			l.mu.Lock()
			l.deleted[id] = true
			l.mu.Unlock()
		default:
			if !k.multipart(l, rng) {
				return
			}
		}
	}
}

func (k *killer) multipart(l *ledger, rng *rand.Rand) bool {
	r, err := k.do("POST", "/-/vaults/v/multipart-uploads", nil, header{"x-cas-part-size": "1048576"})
	if err != nil {
		return false
	}
	u := r.Header.Get("x-cas-multipart-upload-id")
	parts := map[int][]byte{}
	l.mu.Lock()
	l.uploads[u] = parts
	l.mu.Unlock()
	whole := randomBytes(rng, 2<<20+1+rng.IntN(1<<20))
	for n, off := range []int{1 << 20, 0, 2 << 20, 0} {
		b := whole[off:min(off+1<<20, len(whole))]
		if n == 1 { // replaced by the last round
			b = make([]byte, 1<<20)
		}
		h := hashes(b)
		h["Content-Range"] = fmt.Sprintf("bytes %d-%d/*", off, off+len(b)-1)
		l.mu.Lock()
		delete(parts, off) // either version, while unacknowledged
		l.mu.Unlock()
		if _, err := k.do("PUT", "/-/vaults/v/multipart-uploads/"+u, b, h); err != nil {
			return false
		}
		l.mu.Lock()
		parts[off] = b
		l.mu.Unlock()
	}
	if rng.IntN(3) == 0 {
		return true // stays open
	}
	l.mu.Lock()
	l.vague[u] = true
	l.mu.Unlock()
	r, err = k.do("POST", "/-/vaults/v/multipart-uploads/"+u, nil,
		header{"x-cas-archive-size": fmt.Sprint(len(whole)), "x-cas-sha256-tree-hash": naiveTree(whole)})
	if err != nil {
		return false
	}
	l.mu.Lock()
	delete(l.uploads, u)
	delete(l.vague, u)
	l.archives[r.Header.Get("x-cas-archive-id")] = whole
	l.mu.Unlock()
	return true
}

// A store that is killed at any moment keeps what it acknowledged, and nothing
// it did not.
func TestKill(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	(&client{t: t, s: s}).create("v")
	creds := s.Credentials()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l := &ledger{archives: map[string][]byte{}, deleted: map[string]bool{}, asked: map[string]bool{}, uploads: map[string]map[int][]byte{}, vague: map[string]bool{}}
	for life := range 6 {
		cmd, k, wg := startLife(t, dir, creds, l, seed, life)
		time.AfterFunc(time.Duration(50+rng.IntN(250))*time.Millisecond, func() { cmd.Process.Kill() })
		wg.Wait()
		cmd.Wait()
		k.http.CloseIdleConnections()
	}
	l.check(t, dir)
}

// check opens the store and compares it with the ledger.
func (l *ledger) check(t *testing.T, dir string) {
	t.Helper()
	c := &client{t: t, s: mustOpen(t, Options{Dir: dir})}
	v, err := c.s.vault("v")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d archives, %d deleted, %d uploads acknowledged; the store has %d archives", len(l.archives), len(l.deleted), len(l.uploads), v.count)
	for id, b := range l.archives {
		r := c.output("v", c.retrieve("v", id), "")
		if r.StatusCode != 200 || !bytes.Equal(r.body, b) || r.Header.Get("x-cas-sha256-tree-hash") != naiveTree(b) {
			t.Errorf("an acknowledged archive of %d bytes: %d", len(b), r.StatusCode)
		}
	}
	for id := range l.deleted {
		if a := v.archives[id]; a != nil && a.deleted == 0 {
			t.Error("an archive acknowledged as deleted is back")
		}
	}
	for u, parts := range l.uploads {
		up := v.uploads[u]
		if up == nil || up.done != 0 {
			if !l.vague[u] {
				t.Error("an upload is gone")
			}
			continue
		}
		for off, b := range parts {
			if p := up.parts[int64(off)]; p.tree.String() != naiveTree(b) {
				t.Errorf("part at %d of an open upload: %v", off, p)
			}
		}
	}
	// Every file is explained by the index.
	want := map[string]bool{}
	for _, a := range v.order {
		if a.deleted == 0 {
			want[a.id], want[a.id+".tree"] = true, true
			st, err := os.Stat(v.archivePath(a.shard, a.id))
			if err != nil || st.Size() != a.size {
				t.Errorf("%v %v", st, err)
			}
		}
	}
	for up := range maps.Values(v.uploads) {
		if up.done == 0 {
			want[up.archive], want[up.archive+".tree"] = true, true
			for _, p := range up.parts {
				if p.overlay != "" {
					want[up.archive+p.overlay] = true
				}
			}
		}
	}
	for _, f := range files(t, c) {
		if !want[f] {
			t.Errorf("garbage: %s", f)
		}
	}
	if left, _ := dirNames(filepath.Join(dir, "tmp")); len(left) > 0 {
		t.Errorf("garbage: %v", left)
	}
	// Uploads that stayed open can be finished.
	for u, parts := range l.uploads {
		if up := v.uploads[u]; up == nil || up.done != 0 || len(parts) < 3 {
			continue
		}
		whole := append(append(append([]byte(nil), parts[0]...), parts[1<<20]...), parts[2<<20]...)
		id := c.must(201, c.complete("v", u, len(whole), naiveTree(whole))).Header.Get("x-cas-archive-id")
		if r := c.output("v", c.retrieve("v", id), ""); !bytes.Equal(r.body, whole) {
			t.Error("a finished upload differs")
		}
	}
}

// startLife starts a store on dir in a process of its own, and workers that use it until it dies.
func startLife(t *testing.T, dir string, creds Credentials, l *ledger, seed uint64, life int) (*exec.Cmd, *killer, *sync.WaitGroup) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("life %d: %v", life, err)
	}
	k := &killer{t, creds, "http://" + strings.TrimSpace(addr), &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}}
	wg := &sync.WaitGroup{}
	for i := range 4 {
		wg.Go(func() { k.work(l, rand.New(rand.NewPCG(seed, uint64(life*10+i)))) })
	}
	return cmd, k, wg
}
