package jobs

import (
	"time"
)

// meter measures how fast the link brings bytes.
type meter struct {
	rate  float64 // bytes/s
	since time.Time
	until time.Time
	bytes int64
}

// firstGuess is what a link is taken for before anything was measured, in bytes/s.
const firstGuess = 1 << 20

// add notes that n bytes came between began and now. Overlapping fetches count the time once.
func (m *meter) add(n int64, began, now time.Time) {
	if began.After(m.until) {
		m.close()
		m.since = began
	}
	m.bytes += n
	m.until = now
	if m.until.Sub(m.since) > 10*time.Second {
		m.close()
		m.since = now
	}
}

func (m *meter) close() {
	if d := m.until.Sub(m.since); d > 0 && m.bytes > 0 {
		got := float64(m.bytes) / d.Seconds()
		if m.rate > 0 {
			got = 0.7*m.rate + 0.3*got
		}
		m.rate = got
	}
	m.bytes = 0
}

// get returns bytes/s.
func (m *meter) get() float64 {
	if m.rate == 0 {
		return firstGuess
	}
	return m.rate
}
