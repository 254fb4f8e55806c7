package jobs

import (
	"errors"
	"fmt"
	"time"

	"github.com/casfs/casfs/cas"
)

// outage is what uploads know of a service that does not answer, or only with failures of its own. However many files wait, one of them
// tries now and then; when one is taken, or refused for a reason, all go on.
type outage struct {
	tries   int // that failed; 0: there is no outage
	since   time.Time
	next    time.Time // when the next one may try
	err     string
	probing int         // uploads begun during the outage that are under way
	timer   *time.Timer // for next
}

// outageMost is how long after its return a service that was out is used again, at most, but for the time a request takes.
const outageMost = time.Minute

// isOutage reports whether err says more about the service than about what was asked of it.
func isOutage(err error) bool { return errors.Is(err, cas.ErrUnavailable) }

// mayStartLocked reports whether another upload may be begun, as far as the service is concerned.
func (u *uploader) mayStartLocked(now time.Time) bool {
	o := &u.outage
	return o.tries == 0 || o.probing == 0 && !now.Before(o.next)
}

// learnLocked draws its conclusions from the end of t, which began before the outage or was a try.
func (u *uploader) learnLocked(t *task, err error, now time.Time) {
	o := &u.outage
	probe := t.probe
	if t.probe = false; probe {
		o.probing--
	}
	var refused *cas.Error
	switch {
	case err != nil && isOutage(err):
		o.err = err.Error()
		if o.tries > 0 && !probe {
			return // it was under way when the outage began
		}
		if o.tries == 0 {
			o.since = now
		}
		wait := min(retryFirst<<min(o.tries, 16), outageMost)
		o.tries++
		o.next = now.Add(wait)
		if o.timer != nil {
			o.timer.Stop()
		}
		o.timer = time.AfterFunc(wait, u.pump)
		if o.tries == outageSaid {
			u.e.log.Error("the service takes no uploads; one of those that wait tries now and then", "since", o.since, "err", o.err)
		}
	case err == nil, errors.As(err, &refused):
		u.endOutageLocked(now)
	}
}

// outageSaid is after how many failures an outage is worth a word.
const outageSaid = 3

// endOutageLocked lets everything go on that waits for the service.
func (u *uploader) endOutageLocked(now time.Time) {
	o := &u.outage
	if o.tries == 0 {
		return
	}
	if o.tries >= outageSaid {
		u.e.log.Info("the service takes uploads again", "after", now.Sub(o.since).Round(time.Second))
	}
	o.timer.Stop()
	u.outage = outage{probing: o.probing}
	for ino, t := range u.tasks {
		if t.state == taskWaiting && t.outage {
			u.e.settle.retry(ino, now)
		}
	}
}

// tryNow has the next upload tried at once: somebody waits.
func (u *uploader) tryNow() {
	u.mu.Lock()
	u.outage.next = time.Time{}
	u.pumpLocked()
	u.mu.Unlock()
}

func (u *uploader) pump() {
	u.mu.Lock()
	u.pumpLocked()
	u.mu.Unlock()
}

// problem says what is wrong with the service, "" when nothing is known to be.
func (u *uploader) problem() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	o := &u.outage
	if o.tries < outageSaid {
		return ""
	}
	return fmt.Sprintf("the service has taken no uploads since %s: %s. Files wait on this machine; one of them is tried every %s or more often, and at once by casfs sync",
		o.since.Format(time.DateTime), o.err, outageMost)
}
