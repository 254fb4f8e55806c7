package jobs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// guard keeps programs that read everything (a sweep, an indexer) from recalling
// everything. It counts what reads ask for; explicit recalls are not its business.
// Guarded by recaller.mu.
type guard struct {
	maxFiles int   // negative: no limit
	maxBytes int64 // per day; negative: no limit

	files int // retrievals by reads that are not finished, without streams that nobody reads

	hours      map[int64]int64 // bytes asked for by hour since 1970, the last 25
	allowFiles int             // added by Allow until allowUntil
	allowBytes int64
	allowUntil time.Time
	dirty      bool
}

// guardMeta is where the catalog keeps what of the guard survives a restart.
const guardMeta = "recall.guard"

type guardRecord struct {
	Hours      map[int64]int64 `json:"hours,omitempty"`
	AllowFiles int             `json:"allow_files,omitempty"`
	AllowBytes int64           `json:"allow_bytes,omitempty"`
	AllowUntil time.Time       `json:"allow_until,omitzero"`
}

func (g *guard) init(files int, bytes int64) {
	setDefault(&files, 100)
	setDefault(&bytes, 100<<30)
	g.maxFiles, g.maxBytes = files, bytes
	g.hours = make(map[int64]int64)
}

func (g *guard) load(tx *catalog.Tx) error {
	b, err := tx.Meta(guardMeta)
	if err != nil && !errors.Is(err, catalog.ErrNotExist) {
		return err
	}
	var rec guardRecord
	if len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return fmt.Errorf("recall guard: %w", err)
	}
	if rec.Hours != nil {
		g.hours = rec.Hours
	}
	g.allowFiles, g.allowBytes, g.allowUntil = rec.AllowFiles, rec.AllowBytes, rec.AllowUntil
	return nil
}

// saveGuard records the guard as part of another change.
func (r *recaller) saveGuard(tx *catalog.Tx) error {
	r.mu.Lock()
	g := &r.guard
	if !g.dirty {
		r.mu.Unlock()
		return nil
	}
	g.dirty = false
	b, err := json.Marshal(guardRecord{g.hours, g.allowFiles, g.allowBytes, g.allowUntil})
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return tx.PutMeta(guardMeta, b)
}

func hourOf(t time.Time) int64 { return t.Unix() / 3600 }

// asked returns the bytes asked for in the last 24 hours.
func (g *guard) asked(now time.Time) (sum int64) {
	for h, n := range g.hours {
		if h > hourOf(now)-24 {
			sum += n
		}
	}
	return sum
}

// limits returns what is allowed now, math.MaxInt64 for no limit.
func (g *guard) limits(now time.Time) (files, bytes int64) {
	files, bytes = int64(g.maxFiles), g.maxBytes
	if now.Before(g.allowUntil) {
		files += int64(g.allowFiles)
		bytes += g.allowBytes
	}
	if g.maxFiles < 0 {
		files = math.MaxInt64
	}
	if g.maxBytes < 0 {
		bytes = math.MaxInt64
	}
	return files, bytes
}

// check says whether so much more may be asked for. Zero bytes: not known yet.
func (g *guard) check(files int, bytes int64, now time.Time) error {
	maxFiles, maxBytes := g.limits(now)
	if int64(g.files+files) > maxFiles {
		return fmt.Errorf("%w: reads have %d recalls outstanding, the limit is %d (--recall-guard-files; `casfs allow` lifts it, `casfs recall` has none)",
			ErrGuard, g.files, maxFiles)
	}
	if asked := g.asked(now); asked+max(bytes, 1) > maxBytes {
		return fmt.Errorf("%w: reads asked for %d bytes in the last 24 hours and want %d more, the limit is %d (--recall-guard-bytes; `casfs allow` lifts it, `casfs recall` has none)",
			ErrGuard, asked, bytes, maxBytes)
	}
	return nil
}

// checkGuardLocked is guard.check that leaves out retrievals whose bytes have all arrived: a
// program that was just given the last of them goes on before they are recorded as finished. And it leaves out streams in which
// nobody waits for anything: they stay for who comes back, and bring nothing else.
func (r *recaller) checkGuardLocked(files int, bytes int64, now time.Time) error {
	err := r.guard.check(files, bytes, now)
	if err == nil {
		return nil
	}
	for _, rt := range r.active {
		if rt.counted && (rt.streaming && len(rt.demand) == 0 || rt.local != nil && r.completeLocked(rt)) {
			r.uncountLocked(rt)
		}
	}
	return r.guard.check(files, bytes, now)
}

// recountLocked has the guard count rt, if reads want it.
func (r *recaller) recountLocked(rt *retrieval) {
	if !rt.counted && !rt.rec.Explicit {
		rt.counted = true
		r.guard.files++
	}
}

// uncountLocked has the guard count rt no more.
func (r *recaller) uncountLocked(rt *retrieval) {
	if rt.counted {
		rt.counted = false
		r.guard.files--
	}
}

// allowsAhead says whether so much may be asked for ahead of a reader. Read-ahead leaves half of the files
// to those who wait.
func (g *guard) allowsAhead(bytes int64, now time.Time) bool {
	maxFiles, maxBytes := g.limits(now)
	return int64(g.files+1) <= maxFiles/2 && g.asked(now)+bytes <= maxBytes
}

// take counts bytes as asked for. Whoever adds the retrieval counts the file.
func (g *guard) take(bytes int64, now time.Time) {
	g.hours[hourOf(now)] += bytes
	for h := range g.hours {
		if h < hourOf(now)-25 {
			delete(g.hours, h)
		}
	}
	g.dirty = true
}

// refund takes back what turned out to be free: a job that ran already, or one never asked for.
func (g *guard) refund(bytes int64, at time.Time) {
	h := hourOf(at)
	if g.hours[h] = max(g.hours[h]-bytes, 0); g.hours[h] == 0 {
		delete(g.hours, h)
	}
	g.dirty = true
}

// Allow lifts the guard: files and bytes are added to today's allowance; zero: as much as the limits again.
func (e *Engine) Allow(files int, bytes int64) error {
	if files < 0 || bytes < 0 {
		return fmt.Errorf("allowance of %d files, %d bytes: %w", files, bytes, catalog.ErrInvalid)
	}
	r := e.recall
	now := time.Now()
	r.mu.Lock()
	g := &r.guard
	if !now.Before(g.allowUntil) {
		g.allowFiles, g.allowBytes = 0, 0
	}
	if files == 0 && bytes == 0 {
		files, bytes = max(g.maxFiles, 0), max(g.maxBytes, 0)
	}
	g.allowFiles += files
	g.allowBytes += bytes
	g.allowUntil = now.Add(24 * time.Hour)
	g.dirty = true
	clear(r.refusals)
	r.mu.Unlock()
	_, err := e.catalog.Update(r.saveGuard)
	if err != nil {
		return fmt.Errorf("allowance: %w", err)
	}
	e.log.Info("more recalls by reads are allowed", "files", files, "bytes", bytes, "until", now.Add(24*time.Hour))
	return nil
}

// refusal is the last reason why a read of a version was refused, for stat and user.cas.error.
type refusal struct {
	at  time.Time
	err error
}

// maxRefused bounds the refusals kept for explanation.
const maxRefused = 4096

// refusalLog lets through one log line in a while.
type refusalLog struct {
	next    time.Time
	skipped int
}

const refusalEvery = 10 * time.Second

func (r *recaller) refused(c Caller, v catalog.Version, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusedLocked(c, v, err)
}

func (r *recaller) refusedLocked(c Caller, v catalog.Version, err error) {
	now := time.Now()
	if len(r.refusals) >= maxRefused {
		clear(r.refusals)
	}
	r.refusals[verKey{v.Ino, v.V}] = refusal{now, err}
	if now.Before(r.refusedN.next) {
		r.refusedN.skipped++
		return
	}
	r.log.Warn("a read was refused to recall", "ino", v.Ino, "pid", c.PID, "command", commOf(c.PID), "reason", err, "refused before", r.refusedN.skipped)
	r.refusedN = refusalLog{next: now.Add(refusalEvery)}
}

// procDir is where commands are looked up; a variable for tests.
var procDir = "/proc"

// commOf returns the command name of a process or thread, "" when unknown.
func commOf(pid uint32) string {
	if pid == 0 {
		return ""
	}
	b, err := os.ReadFile(path.Join(procDir, strconv.Itoa(int(pid)), "comm"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(b), "\n")
}

// leaderOf returns the process a thread belongs to: FUSE tells the thread, whose
// name a program may have set to anything.
func leaderOf(pid uint32) uint32 {
	b, err := os.ReadFile(path.Join(procDir, strconv.Itoa(int(pid)), "status"))
	if err != nil {
		return 0
	}
	_, rest, ok := bytes.Cut(b, []byte("\nTgid:"))
	if !ok {
		return 0
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	n, err := strconv.ParseUint(strings.TrimSpace(string(line)), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// argv0 returns the base name of what a process was started as. The kernel cuts
// command names after 15 bytes, which "*thumbnailer" would not match.
func argv0(pid uint32) string {
	b, err := os.ReadFile(path.Join(procDir, strconv.Itoa(int(pid)), "cmdline"))
	if err != nil || len(b) == 0 {
		return ""
	}
	first, _, _ := bytes.Cut(b, []byte{0})
	return path.Base(string(first))
}

// deniedComm returns the name of the calling program and the pattern it matches, "" when it may recall.
func deniedComm(patterns []string, pid uint32) (comm, pattern string) {
	if len(patterns) == 0 || pid == 0 {
		return "", ""
	}
	names := []string{commOf(pid)}
	if leader := leaderOf(pid); leader != 0 {
		name := commOf(leader)
		names = append(names, name)
		if len(name) == 15 {
			if full := argv0(leader); strings.HasPrefix(full, name) {
				names = append(names, full)
			}
		}
	}
	for _, name := range names {
		for _, p := range patterns {
			if ok, _ := path.Match(p, name); ok && name != "" {
				return name, p
			}
		}
	}
	return "", ""
}
