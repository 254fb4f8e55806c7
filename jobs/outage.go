package jobs

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/casfs/casfs/cas"
)

// outage is what uploads to a vault know of a service that does not answer for it, or only with failures of its own. However many files
// wait, one of them tries now and then; when something of one is taken, or refused for a reason, all go on.
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

// outageSaid is after how many failures in a row it is the service that fails, and not what was asked of it for one file.
const outageSaid = 3

// isOutage reports whether err says more about the service than about what was asked of it.
func isOutage(err error) bool { return errors.Is(err, cas.ErrUnavailable) }

// mayStart reports whether another upload may be begun, as far as the service is concerned.
func (o *outage) mayStart(now time.Time) bool {
	return o.tries == 0 || o.probing == 0 && !now.Before(o.next)
}

// learnLocked draws its conclusions from the end of t, which began before the outage or was a try.
func (u *uploader) learnLocked(t *task, err error, now time.Time) {
	o := &t.queue.outage
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
			u.e.log.Error("the service takes no uploads; one of those that wait tries now and then", "vault", t.queue.name, "since", o.since, "err", o.err)
		}
	case err == nil && t.v != 0, errors.As(err, &refused): // with nothing to be sent nothing was learnt
		u.endOutageLocked(t.queue, now)
	}
}

// endOutageLocked lets everything go on that waits for the service.
func (u *uploader) endOutageLocked(q *uploadQueue, now time.Time) {
	o := &q.outage
	if o.tries == 0 {
		return
	}
	o.timer.Stop()
	if o.tries >= outageSaid {
		u.e.log.Info("the service takes uploads again", "vault", q.name, "after", now.Sub(o.since).Round(time.Second))
		for ino, t := range u.tasks {
			if t.queue == q && t.state == taskWaiting && t.outage {
				u.e.settle.retry(ino, now)
			}
		}
	}
	q.outage = outage{probing: o.probing}
}

// taken hears that the service has taken a piece of t, the rest of which may take hours.
func (u *uploader) taken(t *task) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if t.queue.outage.tries == 0 {
		return
	}
	if t.probe {
		t.probe = false
		t.queue.outage.probing--
	}
	u.endOutageLocked(t.queue, time.Now())
	u.pumpLocked()
}

// tryNow has the next upload tried at once: somebody waits.
func (u *uploader) tryNow() {
	u.mu.Lock()
	for _, q := range u.queues {
		q.outage.next = time.Time{}
	}
	u.pumpLocked()
	u.mu.Unlock()
}

func (u *uploader) pump() {
	u.mu.Lock()
	u.pumpLocked()
	u.mu.Unlock()
}

// problems says what is wrong with the service, for each vault to which something is to be sent.
func (u *uploader) problems() (list []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	waits := map[*uploadQueue]bool{}
	for _, t := range u.tasks {
		waits[t.queue] = true
	}
	for _, q := range u.queues {
		if o := &q.outage; o.tries >= outageSaid && waits[q] {
			list = append(list, fmt.Sprintf("the service has taken no uploads to vault %s since %s: %s. Files wait on this machine; one of them is tried every %s or more often, and at once by casfs sync",
				q.name, o.since.Format(time.DateTime), o.err, outageMost))
		}
	}
	slices.Sort(list)
	return list
}
