package catalog

import "errors"

// Stats are counts for status, cheap enough to ask for every second.
type Stats struct {
	Inodes, Files            int64
	LiveBytes                int64 // sum of sizes of regular files, as statfs needs it
	StagedFiles, StagedBytes int64
	JournalBytes             int64
	Seq                      uint64
}

// Stats returns counts kept up to date by every change.
func (c *Catalog) Stats() Stats {
	s := *c.stats.Load()
	s.JournalBytes = c.j.Size()
	return s
}

// countAll makes the counts from the records.
func countAll(tx *Tx) (Stats, error) {
	var s Stats
	var bad error
	err := tx.scan([]byte{tInode}, nil, func(k, v []byte) bool {
		var i Inode
		if i, bad = decodeInode(k, v); bad != nil {
			return false
		}
		s.countInode(&i, 1)
		return true
	})
	if err := errors.Join(err, bad); err != nil {
		return s, err
	}
	for v, err := range tx.StagedVersions() {
		if err != nil {
			return s, err
		}
		s.countVersion(&v, 1)
	}
	return s, nil
}

func (s *Stats) add(d *Stats) {
	s.Inodes += d.Inodes
	s.Files += d.Files
	s.LiveBytes += d.LiveBytes
	s.StagedFiles += d.StagedFiles
	s.StagedBytes += d.StagedBytes
}

func (s *Stats) negate() {
	s.Inodes, s.Files, s.LiveBytes = -s.Inodes, -s.Files, -s.LiveBytes
	s.StagedFiles, s.StagedBytes = -s.StagedFiles, -s.StagedBytes
}

func (tx *Tx) countInode(i *Inode, sign int64) { tx.delta.countInode(i, sign) }

func (tx *Tx) countVersion(v *Version, sign int64) { tx.delta.countVersion(v, sign) }

func (s *Stats) countInode(i *Inode, sign int64) {
	if i == nil {
		return
	}
	s.Inodes += sign
	if i.Mode&sIFMT == sIFREG {
		s.Files += sign
		s.LiveBytes += sign * i.Size
	}
}

func (s *Stats) countVersion(v *Version, sign int64) {
	if v == nil || v.State != Staged && v.State != Uploading {
		return
	}
	s.StagedFiles += sign
	s.StagedBytes += sign * v.Size
}
