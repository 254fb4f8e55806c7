package jobs

import (
	"fmt"
	"testing"
	"time"

	"github.com/casfs/casfs/cas"
)

// TestListsStayShort: with many finished jobs in the vault's list, looking at those that run and asking for files
// no job is for does not read all of it each time.
func TestListsStayShort(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := newRecallRig(t, realistic, func(o *Options) { o.GuardFiles = -1 })
		other, data := r.coldFile("other", 1000)
		s, err := r.e.Stat(t.Context(), other)
		if err != nil {
			t.Fatal(err)
		}
		// Somebody's jobs: more than a page of them.
		const many = 1100
		for range many {
			if _, err := r.client.InitiateJob(t.Context(), "v", cas.JobRequest{Type: cas.ArchiveRetrieval, ArchiveID: s.Archives[0].ID, Tier: cas.Expedited}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Minute)
		inos := r.coldFiles(60, 100)
		lists := func() int { return r.srv.Count(cas.OpListJobs) }

		before := lists()
		r.want(inos[0], blob("f000", 100), 0, 100)
		// All of the list when it is wanted; then running jobs only, one page each; all that ended in one description.
		if n := lists() - before; n < 2+3*60 || n > 2+320 {
			t.Errorf("%d pages were read for one file over four hours", n)
		}
		if n := r.srv.Count(cas.OpDescribeJob); n != 1 {
			t.Errorf("%d jobs were described", n)
		}

		// Another soon after: nothing new to be known.
		before = lists()
		read := make(chan struct{})
		go func() {
			defer close(read)
			r.want(inos[1], blob("f001", 100), 0, 100)
		}()
		time.Sleep(100 * time.Millisecond)
		if n := lists() - before; n != 2+1 { // the first look since 4 h; and at the job just asked for
			t.Errorf("%d pages for a first file", n)
		}
		for i := range 50 {
			go r.want(inos[2+i], blob(fmt.Sprintf("f%03d", 2+i), 100), 0, 100)
			time.Sleep(10 * time.Millisecond)
		}
		if n := lists() - before; n > 2+1+50+10 {
			t.Errorf("%d pages for fifty files within a second", n)
		}
		jobs := r.srv.Count(cas.OpInitiateJob)
		<-read

		// A job somebody else has ready is found all the same.
		began := time.Now()
		r.want(other, data, 0, 1000)
		if d := time.Since(began); d > time.Minute {
			t.Errorf("it took %v though an output was there", d)
		}
		// An inventory beside them, whose job ends unseen by a list of running ones.
		r.upload("foreign", []byte("foreign"))
		before = lists()
		r.inventory()
		jobs++
		if _, err := r.e.Lookup(t.Context(), r.vault, "foreign"); err != nil {
			t.Error(err)
		}
		if n := lists() - before; n > 2*320 {
			t.Errorf("%d pages during an inventory", n)
		}
		time.Sleep(time.Hour)
		r.jobs(jobs)
		for i, ino := range inos[:52] {
			r.want(ino, blob(fmt.Sprintf("f%03d", i), 100), 0, 100)
		}
		r.jobs(jobs)
	})
}
