package main

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// result is one workload: what each peer made of it.
type result struct {
	name  string
	how   string // what exactly was done
	unit  string
	less  bool // smaller is better
	peers []string
	cells map[string][]float64
}

// contestant is one who does a workload: a peer, or a bound to be compared with.
type contestant struct {
	name string
	run  func() (float64, error) // in the result's unit
}

// compare lets all do a workload in turn, round after round.
func (b *bench) compare(name, how, unit string, less bool, all []contestant) (*result, error) {
	return b.rounds(b.o.warm, name, how, unit, less, all)
}

// once is compare for work that never does the same twice: no warm-up.
func (b *bench) once(name, how, unit string, all []contestant) (*result, error) {
	return b.rounds(0, name, how, unit, false, all)
}

// cold is compare for work that always begins with nothing in memory: no warm-up.
func (b *bench) cold(name, how, unit string, all []contestant) (*result, error) {
	return b.rounds(0, name, how, unit, true, all)
}

func (b *bench) rounds(warm int, name, how, unit string, less bool, all []contestant) (*result, error) {
	r := &result{name: name, how: how, unit: unit, less: less, cells: map[string][]float64{}}
	for _, c := range all {
		r.peers = append(r.peers, c.name)
	}
	for round := -warm; round < b.o.runs; round++ {
		for i := range all {
			// Who comes first changes, so that nobody always follows the same one.
			c := all[(i+round+warm)%len(all)]
			if !b.unsynced {
				syscall.Sync() // nobody pays for what another one left to be written back
			}
			v, err := c.run()
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", name, c.name, err)
			}
			if round >= 0 {
				r.cells[c.name] = append(r.cells[c.name], v)
			}
		}
	}
	b.results = append(b.results, r)
	var line strings.Builder
	for _, p := range r.peers {
		fmt.Fprintf(&line, "  %s %s", p, number(r.median(p)))
	}
	fmt.Printf("   %s (%s):%s\n", name, unit, line.String())
	return r, nil
}

// each makes contestants of peers.
func each(peers []*peer, run func(*peer) (float64, error)) []contestant {
	all := make([]contestant, len(peers))
	for i, p := range peers {
		all[i] = contestant{p.name, func() (float64, error) { return run(p) }}
	}
	return all
}

// peaks adds what the processes among peers needed of memory at most.
func (b *bench) peaks(name string, peers []*peer) {
	r := &result{name: name, how: "VmHWM", unit: "MiB", less: true, cells: map[string][]float64{}}
	for _, p := range peers {
		if v := p.status("VmHWM"); v > 0 {
			r.peers = append(r.peers, p.name)
			r.cells[p.name] = []float64{float64(v) / mib}
		}
	}
	b.results = append(b.results, r)
}

func (r *result) median(peer string) float64 { return median(r.cells[peer]) }

// ratio says how many times as fast as other casfs is.
func (r *result) ratio(other string) float64 { return r.between(casfs, other) }

func (r *result) between(a, b string) float64 {
	x, y := r.median(a), r.median(b)
	if r.less {
		x, y = y, x
	}
	if y == 0 {
		return 0
	}
	return x / y
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func percentile(v []time.Duration, p float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return float64(s[min(len(s)-1, int(float64(len(s))*p))].Nanoseconds()) / 1e3
}

// rate is n per second of the time a function takes.
func rate(n float64, f func() error) (float64, error) {
	began := time.Now()
	err := f()
	return n / time.Since(began).Seconds(), err
}

func mb(n int64) float64 { return float64(n) / 1e6 }

func number(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
