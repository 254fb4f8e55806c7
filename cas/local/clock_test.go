package local

import (
	"encoding/json"
	"slices"
	"testing"
	"time"
)

// TestClockPutBack: what was done while the clock was ahead is in the inventories all the same.
func TestClockPutBack(t *testing.T) {
	for _, back := range []time.Duration{time.Second, 10 * 365 * 24 * time.Hour} {
		c := open(t, Options{})
		c.create("v")
		old, gone := c.upload("v", []byte("old"), ""), c.upload("v", []byte("gone"), "")
		c.c.advance(back)
		ahead := c.upload("v", []byte("ahead"), "")
		c.must(204, c.do("DELETE", "/-/vaults/v/archives/"+gone, nil, nil))
		c.c.advance(-back)
		var list struct{ ArchiveList []struct{ ArchiveId string } }
		if err := json.Unmarshal(c.must(200, c.output("v", c.job("v", `{"Type":"inventory-retrieval"}`), "")).body, &list); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range list.ArchiveList {
			got = append(got, a.ArchiveId)
		}
		if want := []string{old, ahead}; !slices.Equal(got, want) {
			t.Errorf("clock put back by %v: %d archives listed, %.5q, want %.5q", back, len(got), got, want)
		}
	}
}

// TestJobOfClockAhead: a job that was started while the clock was far ahead ends all the same.
func TestJobOfClockAhead(t *testing.T) {
	c := open(t, Options{Delays: Delays{Standard: time.Hour, Inventory: time.Hour}})
	c.create("v")
	id := c.upload("v", []byte("x"), "")
	const ahead = 10 * 365 * 24 * time.Hour
	c.c.advance(ahead)
	job, inv := c.retrieve("v", id), c.job("v", `{"Type":"inventory-retrieval"}`)
	c.c.advance(-ahead)
	if r := c.must(200, c.output("v", job, "")); string(r.body) != "x" {
		t.Errorf("%q", r.body)
	}
	var list struct{ InventoryDate time.Time }
	if err := json.Unmarshal(c.must(200, c.output("v", inv, "")).body, &list); err != nil || !list.InventoryDate.Equal(c.c.now()) {
		t.Errorf("%v %v", list, err)
	}
}
