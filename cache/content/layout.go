package content

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A place is one of the directory trees local files live in.
type place uint8

const (
	inStaging place = iota
	inState         // StateDir/content
	inCache         // CacheDir/content, when that is another directory
	places
)

const (
	tmpSuffix     = ".tmp"
	partSuffix    = ".part"
	mapSuffix     = ".map"
	punchedSuffix = ".punched"
	shards        = 256 // by the low byte of the number
)

func shardName(i int) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[i>>4&15], digits[i&15]})
}

// path returns the name of file id with a suffix ("" for the data of a whole file).
func (s *Store) path(p place, id uint64, suffix string) string {
	name := strconv.FormatUint(id, 16)
	const zeros = "0000000000000000"
	return s.dirs[p] + "/" + shardName(int(id&0xff)) + "/" + zeros[len(name):] + name + suffix
}

// dataPath is where the bytes of n are. The caller holds what keeps n from moving.
func (s *Store) dataPath(n *node) string {
	if n.partial {
		return s.path(n.place, n.id, partSuffix)
	}
	return s.path(n.place, n.id, "")
}

// parseName splits a directory entry; ok is false for foreign names.
func parseName(name string) (id uint64, suffix string, ok bool) {
	if len(name) < 16 {
		return 0, "", false
	}
	hex, suffix := name[:16], name[16:]
	if strings.ToLower(hex) != hex {
		return 0, "", false
	}
	id, err := strconv.ParseUint(hex, 16, 64)
	return id, suffix, err == nil
}

// shardState says how far a shard directory has got. They are made when first needed: making all of them
// takes most of a second on a disk.
const (
	shardMissing uint32 = iota
	shardMade
	shardDurable // its name survives power loss
)

// makeDir creates the directory of a place and makes the names in and above it survive power loss.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := syncPath(filepath.Dir(dir)); err != nil {
		return err
	}
	return syncPath(dir)
}

func syncPath(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// needShard creates the directory for id.
func (s *Store) needShard(p place, id uint64) error {
	state := &s.shards[p][id&0xff]
	if state.Load() != shardMissing {
		return nil
	}
	err := os.Mkdir(s.dirs[p]+"/"+shardName(int(id&0xff)), 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return noSpace(err)
	}
	state.CompareAndSwap(shardMissing, shardMade)
	return nil
}

// syncNames makes the names of id's files in a place survive power loss.
func (s *Store) syncNames(p place, id uint64) error {
	if err := s.step("dir.sync"); err != nil {
		return err
	}
	if err := syncPath(s.dirs[p] + "/" + shardName(int(id&0xff))); err != nil {
		return err
	}
	state := &s.shards[p][id&0xff]
	if state.Load() == shardDurable {
		return nil
	}
	if err := syncPath(s.dirs[p]); err != nil {
		return err
	}
	state.Store(shardDurable)
	return nil
}

// found is what a scan saw of one number in one place.
type found struct {
	whole, part       bool
	sidecar           bool // .map or .punched
	size, alloc       int64
	mtime, atime      int64 // ns
	partSize, partAll int64
}

// scan lists one place, shards in parallel: with a cold cache nearly all the time is waiting for the disk.
func (s *Store) scan(p place) (map[uint64]*found, error) {
	all := make(map[uint64]*found)
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed error
	next := make(chan int)
	for range 8 {
		wg.Go(func() {
			for i := range next {
				m, err := s.scanShard(p, i)
				mu.Lock()
				if err != nil && failed == nil {
					failed = err
				}
				for id, f := range m {
					all[id] = f
				}
				mu.Unlock()
			}
		})
	}
	for i := range shards {
		next <- i
	}
	close(next)
	wg.Wait()
	return all, failed
}

func (s *Store) scanShard(p place, i int) (map[uint64]*found, error) {
	dir := s.dirs[p] + "/" + shardName(i)
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	s.shards[p][i].Store(shardDurable) // makeDir saw to that
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	m := make(map[uint64]*found, len(names))
	for _, name := range names {
		id, suffix, ok := parseName(name)
		if !ok || int(id&0xff) != i {
			s.log.Warn("foreign file in the local store", "path", dir+"/"+name)
			continue
		}
		if strings.HasSuffix(suffix, tmpSuffix) {
			os.Remove(dir + "/" + name)
			continue
		}
		f := m[id]
		if f == nil {
			f = &found{}
			m[id] = f
		}
		if suffix == mapSuffix || suffix == punchedSuffix {
			f.sidecar = true
			continue
		}
		if suffix != "" && suffix != partSuffix {
			s.log.Warn("foreign file in the local store", "path", dir+"/"+name)
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, fmt.Errorf("%s/%s: %w", dir, name, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			s.log.Warn("foreign file in the local store", "path", dir+"/"+name)
			continue
		}
		if suffix == "" {
			f.whole = true
			f.size, f.alloc = st.Size, st.Blocks*512
		} else {
			f.part = true
			f.partSize, f.partAll = st.Size, st.Blocks*512
		}
		f.mtime = st.Mtim.Nano()
		f.atime = st.Atim.Nano()
	}
	return m, nil
}

// load builds the index from what is on disk and clears away what a crash left.
func (s *Store) load() error {
	var seen [places]map[uint64]*found
	for p := range places {
		if s.dirs[p] == "" {
			continue
		}
		m, err := s.scan(p)
		if err != nil {
			return err
		}
		seen[p] = m
	}
	for id, f := range seen[inStaging] {
		s.loadStaging(id, f)
	}
	for p := inState; p < places; p++ {
		for id, f := range seen[p] {
			s.loadContent(p, id, f)
		}
	}
	s.loadOrder()
	return nil
}

func (s *Store) loadStaging(id uint64, f *found) {
	side := s.path(inStaging, id, punchedSuffix)
	if !f.whole {
		if f.sidecar { // the file was promoted or removed; its record came last
			s.discard(side, "no staging file belongs to it")
		}
		return
	}
	n := &node{id: id, kind: Staging, place: inStaging, size: f.size, mtime: f.mtime}
	if f.sidecar {
		set, alloc, err := s.loadPunched(id, f.size)
		if alloc >= 0 {
			f.alloc = alloc
		}
		if err != nil {
			s.log.Error("record of dropped parts is unreadable: every hole in the staging file counts as dropped",
				"path", side, "err", err)
		}
		if len(set) > 0 {
			n.punched.Store(&set)
		}
	}
	n.charged[acctStaging] = f.alloc
	s.nodes[id] = n
	s.used[acctStaging] += f.alloc
}

// loadPunched reads which parts of a staging file were dropped and drops them
// again, since the crash may have come between record and deed. alloc is what the file
// occupies then, or -1.
func (s *Store) loadPunched(id uint64, size int64) (set ranges, alloc int64, err error) {
	path := s.path(inStaging, id, "")
	b, err := os.ReadFile(s.path(inStaging, id, punchedSuffix))
	if err == nil {
		_, set, err = decodeSidecar(b, id)
	}
	fd, e := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if e != nil {
		return set, -1, e
	}
	defer unix.Close(fd)
	if err != nil {
		return holes(fd, size), -1, err
	}
	// What lies beyond the end was cut off, or never became durable. The record has to go before anything is written there.
	if cut := set.clip(size); len(cut) != len(set) || (len(cut) > 0 && cut[len(cut)-1] != set[len(set)-1]) {
		o := &open{s: s, n: &node{id: id}}
		if err := o.recordPunched(size, cut); err != nil {
			s.log.Error("cannot shorten the record of dropped parts", "path", path, "err", err)
		} else {
			set = cut
		}
	}
	for _, r := range set {
		if e := fallocate(fd, punchMode, r.Off, r.Len); e != nil {
			s.log.Warn("cannot drop an uploaded part", "path", path, "err", e)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return set, -1, err
	}
	return set, st.Blocks * 512, nil
}

// holes returns the unallocated ranges of a file.
func holes(fd int, size int64) ranges {
	var set ranges
	for at := int64(0); at < size; {
		hole, err := unix.Seek(fd, at, unix.SEEK_HOLE)
		if err != nil || hole >= size {
			break
		}
		data, err := unix.Seek(fd, hole, unix.SEEK_DATA)
		if err != nil {
			data = size
		}
		set = set.add(Range{hole, data - hole})
		at = data
	}
	return set
}

func (s *Store) loadContent(p place, id uint64, f *found) {
	whole, part, side := s.path(p, id, ""), s.path(p, id, partSuffix), s.path(p, id, mapSuffix)
	if old := s.nodes[id]; old != nil && (f.whole || f.part || f.sidecar) {
		why := "the file is staged" // staging is never given up for a copy
		if old.kind == Content {
			why = "there are two copies"
			if old.partial && f.whole {
				s.forgetLoaded(old)
				old = nil
			}
		}
		if old != nil {
			for path, there := range map[string]bool{whole: f.whole, part: f.part, side: f.sidecar} {
				if there {
					s.discard(path, why)
				}
			}
			return
		}
	}
	n := &node{id: id, kind: Content, place: p, size: f.size, mtime: f.mtime, atime: f.atime}
	switch {
	case f.whole:
		if f.part {
			s.discard(part, "a complete copy exists")
		}
		if f.sidecar {
			s.discard(side, "a complete copy exists")
		}
		n.charged[acctCache] = f.alloc
	case f.part:
		n.partial = true
		n.size = f.partSize
		n.charged[acctCache] = f.partAll
		var set ranges
		var size int64
		b, err := os.ReadFile(side)
		if err == nil {
			size, set, err = decodeSidecar(b, id)
		}
		if err == nil && size != f.partSize {
			err = fmt.Errorf("written for %d bytes, the file has %d", size, f.partSize)
		}
		if errors.Is(err, fs.ErrNotExist) {
			s.discard(part, "") // made, and ended before the first range was verified
			return
		}
		if err != nil {
			s.discard(part, "no readable record of what is verified: "+err.Error())
			if f.sidecar {
				s.discard(side, "")
			}
			return
		}
		n.verified.Store(&set)
	default:
		if f.sidecar {
			s.discard(side, "no content file belongs to it")
		}
		return
	}
	s.nodes[id] = n
	s.used[acctCache] += n.charged[acctCache]
}

func (s *Store) forgetLoaded(n *node) {
	s.discard(s.dataPath(n), "there are two copies")
	s.discard(s.path(n.place, n.id, mapSuffix), "")
	s.used[acctCache] -= n.charged[acctCache]
	delete(s.nodes, n.id)
}

// discard removes a disposable file found at Open.
func (s *Store) discard(path, why string) {
	if why != "" {
		s.log.Warn("removing a leftover in the local store", "path", path, "reason", why)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("cannot remove a leftover in the local store", "path", path, "err", err)
	}
}

// loadOrder restores the order of eviction from the access times Touch left,
// and lets the cache carry what staging holds beyond its limit: demoted files, or a limit lowered since.
func (s *Store) loadOrder() {
	var files []*node
	for _, n := range s.nodes {
		if n.kind == Content {
			files = append(files, n)
			continue
		}
		if over := min(s.used[acctStaging]-s.stagingLimit, n.charged[acctStaging]); over > 0 {
			n.charged[acctStaging] -= over
			n.charged[acctCache] += over
			s.used[acctStaging] -= over
			s.used[acctCache] += over
		}
	}
	sort.Slice(files, func(i, j int) bool {
		if files[i].atime != files[j].atime {
			return files[i].atime < files[j].atime
		}
		return files[i].id < files[j].id
	})
	for _, n := range files {
		s.lru.pushBack(n)
	}
}
