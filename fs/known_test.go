package fs

import "testing"

func TestKnown(t *testing.T) {
	var k known
	released := 0
	file := func() *removed { return &removed{release: func() { released++ }} }
	if k.keep(7, file()) {
		t.Error("kept what the kernel does not know")
	}
	k.add(7)
	k.add(7)
	k.add(7)
	if !k.keep(7, file()) || k.keep(7, file()) {
		t.Error("a file is kept once")
	}
	k.forget(7, 1)
	k.forget(7, 1)
	if known, r := k.has(7); !known || r == nil || released != 0 {
		t.Errorf("with one reference left: known %v, %+v kept, %d released", known, r, released)
	}
	k.forget(7, 1)
	if known, r := k.has(7); known || r != nil || released != 1 {
		t.Errorf("forgotten: known %v, %+v kept, %d released", known, r, released)
	}
	// More than is there, as after an answer that never arrived.
	k.add(8)
	k.forget(8, 5)
	k.forget(8, 1)
	if known, _ := k.has(8); known {
		t.Error("known after too many were forgotten")
	}
	// A directory's last attributes may be replaced by later ones; it is not released.
	k.add(9)
	k.add(9)
	first, second := &removed{target: "1"}, &removed{target: "2"}
	if !k.keep(9, first) || !k.keep(9, second) {
		t.Error("not kept")
	}
	if _, r := k.has(9); r != second {
		t.Error("the later one counts")
	}
	k.add(10)
	k.keep(10, file())
	k.clear()
	if known, r := k.has(9); known || r != nil || released != 2 {
		t.Errorf("cleared: known %v, %+v kept, %d released", known, r, released)
	}
	// Room is given back when nothing is left.
	s := k.shard(0)
	for i := range uint64(2000) {
		k.add(i * uint64(len(k.shards)))
	}
	if s.peak != 2000 {
		t.Errorf("peak %d, want 2000", s.peak)
	}
	for i := range uint64(2000) {
		k.forget(i*uint64(len(k.shards)), 1)
	}
	if s.refs != nil || s.peak != 0 {
		t.Errorf("%d references and a peak of %d are left", len(s.refs), s.peak)
	}
}

func TestTable(t *testing.T) {
	var tab table[string]
	a, b := tab.add("a"), tab.add("b")
	if a == 0 || b == 0 || a == b || tab.get(a) != "a" || tab.get(b) != "b" || tab.get(b+1) != "" {
		t.Errorf("numbers %d and %d", a, b)
	}
	if tab.take(a) != "a" || tab.take(a) != "" || tab.get(a) != "" {
		t.Error("taken twice")
	}
	if c := tab.add("c"); c == a || c == b {
		t.Errorf("number %d is used again", c)
	}
	if all := tab.takeAll(); len(all) != 2 || len(tab.takeAll()) != 0 {
		t.Errorf("left: %q", all)
	}
}

func (t *table[H]) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.open)
}
