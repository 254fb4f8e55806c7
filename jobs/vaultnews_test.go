package jobs

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/casfs/casfs/cache/catalog"
	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/castest"
)

// A list of vaults that was asked for before a vault was found gone, and comes after that, does not bring it back: its files' only
// copies would be evicted.
func TestVaultGoneStaysGone(t *testing.T) {
	quietly(t, func(o *Options) { o.Settle = -1 }, func(t *testing.T, r *rig) {
		ino := r.write("f", []byte("a copy"))
		r.sync()
		answer := r.srv.Inject(castest.Fault{Op: cas.OpListVaults, Kind: castest.HoldReply, Count: 1})
		old := make(chan error, 1)
		go func() { old <- r.e.Probe(context.Background()) }()
		synctest.Wait()
		r.deleteVault()
		r.must(r.e.Probe(context.Background()))
		answer()
		r.must(<-old)
		if res, err := r.e.Evict(context.Background(), []uint64{ino}, false); err != nil || len(res.Skipped) != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
		r.expect(ino, []byte("a copy"))
	})
}

// Questions about a vault, however many, keep no list of vaults from being merged.
func TestListOfVaultsIsNotStarved(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.virtualTime = true })
		defer r.close()
		if _, err := r.client.CreateVault(t.Context(), "another"); err != nil {
			t.Fatal(err)
		}
		r.srv.Inject(castest.Fault{Op: cas.OpListVaults, Kind: castest.Delay, Delay: time.Minute})
		done := make(chan error, 1)
		asked := r.srv.Count(cas.OpListVaults)
		go func() { done <- r.e.Probe(t.Context()) }()
		for range 50 {
			r.must(r.e.askVault(t.Context(), "v"))
			time.Sleep(time.Second)
		}
		r.must(<-done)
		if _, err := r.e.Lookup(t.Context(), catalog.RootIno, "another"); err != nil {
			t.Error(err)
		}
		if n := r.srv.Count(cas.OpListVaults) - asked; n != 1 {
			t.Errorf("%d lists", n)
		}
	})
}

// A list that was asked for before a vault was made does not know it, and says nothing about it.
func TestVaultMadeWhileVaultsAreListed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.virtualTime = true })
		defer r.close()
		answer := r.srv.Inject(castest.Fault{Op: cas.OpListVaults, Kind: castest.HoldReply, Count: 1})
		old := make(chan error, 1)
		go func() { old <- r.e.Probe(t.Context()) }()
		synctest.Wait()
		if _, err := r.e.Mkdir(t.Context(), someone, catalog.RootIno, "new", 0o755); err != nil {
			t.Fatal(err)
		}
		answer()
		r.must(<-old)
		r.wantNoProblem()
	})
}

// Who asks about a vault that was made again, and is overtaken by an older word that it is gone, has it back all the same.
func TestVaultBackBesideAnOlderList(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.virtualTime = true })
		defer r.close()
		r.deleteVault()
		list := r.srv.Inject(castest.Fault{Op: cas.OpListVaults, Kind: castest.HoldReply, Count: 1})
		listed, asked := make(chan error, 1), make(chan error, 1)
		go func() { listed <- r.e.Probe(t.Context()) }()
		synctest.Wait()
		r.makeVault()
		answer := r.srv.Inject(castest.Fault{Op: cas.OpDescribeVault, Kind: castest.HoldReply, Count: 1})
		go func() { asked <- r.e.askVault(t.Context(), "v") }()
		synctest.Wait()
		list()
		r.must(<-listed)
		answer()
		r.must(<-asked)
		if gone, _, err := r.e.vaultGone(r.vault); err != nil || gone {
			t.Errorf("gone %v, %v", gone, err)
		}
	})
}
