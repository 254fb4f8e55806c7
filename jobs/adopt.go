package jobs

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
)

// adoptLife is what must be left of it for somebody's finished job to be of use.
const adoptLife = 10 * time.Minute

// maxFailures is how many jobs of a retrieval may fail, or expire without a byte fetched, before it is given up.
const maxFailures = 5

// settle records retrievals whose job got on, and gives up those that failed for good.
func (r *recaller) settle(changed []*retrieval) {
	var keep []*retrieval
	for _, rt := range changed {
		r.mu.Lock()
		gone, failed, why := rt.gone, rt.failures >= maxFailures, rt.rec.Error
		r.mu.Unlock()
		switch {
		case gone: // bury deletes its record
		case failed:
			r.fail(rt, errors.New(why), false)
		default:
			keep = append(keep, rt)
		}
	}
	if len(keep) == 0 {
		return
	}
	if _, err := r.save(keep...); err != nil {
		r.log.Error("the state of recalls is not recorded; the list of jobs will tell", "error", err)
	}
}

// covers reports whether the output of j serves rt: it holds the range, and the service tells hashes of its parts.
func covers(j cas.Job, rt *retrieval) bool {
	return j.Range.Off <= rt.rec.Off && rt.end() <= j.Range.End() && cas.TreeAligned(j.Range, rt.arc.Size) &&
		(j.ArchiveSize < 0 || j.ArchiveSize == rt.arc.Size)
}

// applyLocked takes over what the service says of rt's job; it reports whether anything changed.
func (r *recaller) applyLocked(rt *retrieval, j cas.Job, now time.Time) bool {
	if rt.gone || rt.finishing || rt.rec.State == catalog.Wanted || rt.rec.JobID != j.ID {
		return false
	}
	switch {
	case j.Failed() && rt.rec.Ahead:
		r.dropAheadLocked(rt, errors.New("job failed: "+j.StatusMessage))
		return false
	case j.Failed():
		rt.failures++
		rt.rec.Error = "job failed: " + j.StatusMessage
		rt.notBefore = now.Add(min(time.Minute<<min(rt.failures-1, 20), time.Hour))
		r.log.Warn("a recall's job failed", "archive", rt.arc.ID, "job", j.ID, "message", j.StatusMessage, "failures", rt.failures)
		r.unreadyLocked(rt)
		return true
	case j.ArchiveID != rt.arc.ID || !covers(j, rt):
		rt.failures++
		rt.rec.Error = fmt.Sprintf("job %s is for another range, %s", j.ID, j.Range)
		r.unreadyLocked(rt)
		return true
	case !j.Succeeded():
		rt.jobRange = j.Range
		return false
	}
	rt.jobRange = j.Range
	if rt.rec.State != catalog.Asked {
		return false
	}
	completed := j.CompletionDate
	if completed.IsZero() {
		completed = now
	}
	if now.Sub(completed) >= outputLife {
		return r.expiredLocked(rt, now)
	}
	if !j.CreationDate.IsZero() {
		r.tookLocked(j.Tier, completed.Sub(j.CreationDate))
	}
	rt.rec.State, rt.rec.ReadyAt, rt.rec.Expires = catalog.Ready, completed.UnixNano(), completed.Add(outputLife).UnixNano()
	if rt.tries == 0 { // else it was wanted already, and was not there
		rt.rec.Error = ""
	}
	rt.cursor = rt.rec.Off
	r.ready = append(r.ready, rt)
	rt.wake()
	r.wakeFetchersLocked()
	return true
}

// unreadyLocked takes rt back to where no job is known.
func (r *recaller) unreadyLocked(rt *retrieval) {
	r.setJobLocked(rt, "")
	rt.rec.State, rt.rec.Adopted, rt.listed, rt.tries = catalog.Wanted, false, false, 0
	rt.crowded, rt.noRoom = false, 0
	r.countLocked(rt)
	r.unopenLocked(rt)
}

// unopenLocked has nothing fetched for rt until its output is ready again.
func (r *recaller) unopenLocked(rt *retrieval) {
	is := func(x *retrieval) bool { return x == rt }
	r.ready = slices.DeleteFunc(r.ready, is)
	r.active = slices.DeleteFunc(r.active, is)
}

// expiredLocked counts an output that went before all of it was fetched; rt is asked for again.
func (r *recaller) expiredLocked(rt *retrieval, now time.Time) bool {
	if rt.rec.Ahead {
		r.dropAheadLocked(rt, errors.New("the job's output expired"))
		return false
	}
	if rt.streaming && len(rt.demand) == 0 {
		r.unreadLocked(rt)
		return false
	}
	if rt.lostJobs == nil {
		rt.lostJobs = make(map[string]int)
	}
	rt.lostJobs[rt.rec.JobID]++
	rt.rec.Expired++
	if !rt.progress {
		rt.failures++
	}
	rt.rec.Error = "the job's output expired before it was fetched"
	rt.notBefore = now
	r.holdLocked(rt, true)
	r.log.Warn("a job's output expired before it was fetched", "archive", rt.arc.ID, "job", rt.rec.JobID, "expired", rt.rec.Expired)
	r.unreadyLocked(rt)
	return true
}

// unreadLocked drops a streaming retrieval nobody reads any more.
func (r *recaller) unreadLocked(rt *retrieval) {
	r.waves.failedLocked(rt, errTooLarge)
	r.removeLocked(rt)
}

var errTooLarge = errors.New("it is larger than the cache and comes only while it is read")

// considerLocked remembers j if rt could use it and it is better than what was seen so far.
func (r *recaller) considerLocked(rt *retrieval, j cas.Job, now time.Time) {
	if rt.gone || j.Failed() || !covers(j, rt) {
		return
	}
	if rt.lostJobs[j.ID] > 1 {
		return // the list has it, and its output was not there twice
	}
	own := rt.rec.ID != 0 && j.Description == jobDescription(r.e.catalog.ID(), rt.rec.ID)
	if j.Succeeded() {
		if j.CompletionDate.IsZero() || now.Sub(j.CompletionDate) > outputLife-adoptLife {
			return
		}
	} else if !own && rt.tier() == cas.Expedited && j.Tier != cas.Expedited {
		return // it would come hours later
	}
	if c := rt.candidate; c != nil {
		better := j.Succeeded() && !c.Succeeded() ||
			j.Succeeded() == c.Succeeded() && (j.Range.Len < c.Range.Len || j.Range.Len == c.Range.Len && j.CompletionDate.After(c.CompletionDate))
		if !better {
			return
		}
	}
	rt.candidate = &j
}

// adoptLocked makes a job that runs already rt's.
func (r *recaller) adoptLocked(rt *retrieval, now time.Time) bool {
	j := rt.candidate
	rt.candidate = nil
	rt.listed = true
	if j == nil || rt.gone || rt.asking || rt.rec.State != catalog.Wanted {
		return false
	}
	own := rt.rec.ID != 0 && j.Description == jobDescription(r.e.catalog.ID(), rt.rec.ID)
	r.setJobLocked(rt, j.ID)
	rt.rec.State, rt.rec.AskedAt, rt.rec.Uncertain, rt.rec.Error = catalog.Asked, now.UnixNano(), false, ""
	if !j.CreationDate.IsZero() {
		rt.rec.AskedAt = min(j.CreationDate.UnixNano(), now.UnixNano()) // the service's clock may be ahead
	}
	rt.tries, rt.notBefore = 0, time.Time{}
	r.holdLocked(rt, false)
	if own {
		rt.rec.Attempts++
	} else {
		rt.rec.Adopted = true
		if rt.counted && rt.rec.Attempts == 0 {
			r.guard.refund(rt.rec.Len, time.Unix(0, rt.rec.Created))
		}
		r.log.Info("a job that runs already is used", "archive", rt.arc.ID, "job", j.ID, "status", j.StatusCode)
	}
	r.applyLocked(rt, *j, now)
	return true
}
