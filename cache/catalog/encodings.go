package catalog

func encodeInode(key []byte, i *Inode) []byte {
	w := newWriter(96 + len(i.Target))
	w.uint(i.Vault)
	w.uint(i.Parent)
	w.uint(uint64(i.Mode))
	w.uint(uint64(i.UID))
	w.uint(uint64(i.GID))
	w.uint(uint64(i.Rdev))
	w.uint(uint64(i.Nlink))
	w.int(i.Size)
	w.time(i.Atime)
	w.time(i.Mtime)
	w.time(i.Ctime)
	w.time(i.Btime)
	w.uint(i.Version)
	w.int(i.Entries)
	w.str(i.Target)
	w.flags(i.Pinned)
	return w.seal(key)
}

func decodeInode(key, b []byte) (Inode, error) {
	r, err := open(key, b)
	if err != nil {
		return Inode{}, err
	}
	i := Inode{
		Ino:     num(key, 0),
		Vault:   r.uint(),
		Parent:  r.uint(),
		Mode:    r.uint32(),
		UID:     r.uint32(),
		GID:     r.uint32(),
		Rdev:    r.uint32(),
		Nlink:   r.uint32(),
		Size:    r.int(),
		Atime:   r.time(),
		Mtime:   r.time(),
		Ctime:   r.time(),
		Btime:   r.time(),
		Version: r.uint(),
		Entries: r.int(),
		Target:  r.str(),
	}
	r.flags(&i.Pinned)
	return i, r.close(key)
}

// encodeName is the value of a directory's name table.
func encodeName(key []byte, d *Dirent) []byte {
	w := newWriter(24)
	w.uint(d.Ino)
	w.uint(d.Cookie)
	w.uint(uint64(d.Type))
	return w.seal(key)
}

func decodeName(key, b []byte) (Dirent, error) {
	r, err := open(key, b)
	if err != nil {
		return Dirent{}, err
	}
	d := Dirent{Parent: num(key, 0), Name: string(key[9:]), Ino: r.uint(), Cookie: r.uint(), Type: r.uint32()}
	return d, r.close(key)
}

// encodeEntry is the value of a directory's listing table.
func encodeEntry(key []byte, d *Dirent) []byte {
	w := newWriter(24 + len(d.Name))
	w.uint(d.Ino)
	w.uint(uint64(d.Type))
	w.str(d.Name)
	return w.seal(key)
}

func decodeEntry(key, b []byte) (Dirent, error) {
	r, err := open(key, b)
	if err != nil {
		return Dirent{}, err
	}
	d := Dirent{Parent: num(key, 0), Cookie: num(key, 1), Ino: r.uint(), Type: r.uint32(), Name: r.str()}
	return d, r.close(key)
}

func encodeVersion(key []byte, v *Version) []byte {
	w := newWriter(96 + 16*len(v.Extents) + len(v.Error))
	w.byte(byte(v.State))
	w.uint(v.Local)
	w.flags(v.Complete, v.Damaged)
	w.int(v.Size)
	w.time(v.Mtime)
	w.hash(v.TreeHash)
	w.uint(uint64(len(v.Extents)))
	for _, e := range v.Extents {
		w.uint(e.Archive)
		w.int(e.Off)
		w.int(e.Len)
	}
	w.time(v.StagedAt)
	w.time(v.ArchivedAt)
	w.str(v.Error)
	return w.seal(key)
}

func decodeVersion(key, b []byte) (Version, error) {
	r, err := open(key, b)
	if err != nil {
		return Version{}, err
	}
	v := Version{Ino: num(key, 0), V: num(key, 1), State: VersionState(r.byte()), Local: r.uint()}
	r.flags(&v.Complete, &v.Damaged)
	v.Size = r.int()
	v.Mtime = r.time()
	v.TreeHash = r.hash()
	n := r.uint()
	if n > uint64(len(r.b)) { // an extent takes three bytes at least
		r.bad = true
		return Version{}, r.close(key)
	}
	if n > 0 {
		v.Extents = make([]Extent, 0, n)
	}
	for range n {
		v.Extents = append(v.Extents, Extent{Archive: r.uint(), Off: r.int(), Len: r.int()})
	}
	v.StagedAt = r.time()
	v.ArchivedAt = r.time()
	v.Error = r.str()
	return v, r.close(key)
}

func encodeArchive(key []byte, a *Archive) []byte {
	w := newWriter(128 + len(a.VaultName) + len(a.ID) + len(a.Description) + len(a.Intent))
	w.uint(a.Vault)
	w.str(a.VaultName)
	w.str(a.ID)
	w.int(a.Size)
	w.hash(a.TreeHash)
	w.time(a.Created)
	w.str(a.Description)
	w.str(a.Intent)
	w.byte(byte(a.State))
	w.time(a.Deadline)
	w.uint(a.Ino)
	w.uint(a.V)
	w.int(int64(a.Misses))
	w.time(a.Confirmed)
	return w.seal(key)
}

func decodeArchive(key, b []byte) (Archive, error) {
	r, err := open(key, b)
	if err != nil {
		return Archive{}, err
	}
	a := Archive{
		Num:         num(key, 0),
		Vault:       r.uint(),
		VaultName:   r.str(),
		ID:          r.str(),
		Size:        r.int(),
		TreeHash:    r.hash(),
		Created:     r.time(),
		Description: r.str(),
		Intent:      r.str(),
		State:       ArchiveState(r.byte()),
		Deadline:    r.time(),
		Ino:         r.uint(),
		V:           r.uint(),
		Misses:      int(r.int()),
		Confirmed:   r.time(),
	}
	return a, r.close(key)
}

func encodeUpload(key []byte, u *Upload) []byte {
	w := newWriter(160 + len(u.VaultName) + len(u.UploadID) + len(u.Description) + len(u.Error))
	w.uint(u.Ino)
	w.uint(u.V)
	w.int(int64(u.Seg))
	w.int(int64(u.Segs))
	w.int(u.Off)
	w.int(u.Size)
	w.uint(u.Vault)
	w.str(u.VaultName)
	w.byte(byte(u.State))
	w.str(u.UploadID)
	w.int(u.PartSize)
	w.time(u.Started)
	w.uint(u.Archive)
	w.hash(u.TreeHash)
	w.str(u.Description)
	w.flags(u.Uncertain, u.Permanent)
	w.int(int64(u.Attempts))
	w.str(u.Error)
	return w.seal(key)
}

func decodeUpload(key, b []byte) (Upload, error) {
	r, err := open(key, b)
	if err != nil {
		return Upload{}, err
	}
	u := Upload{
		Intent:      string(key[1:]),
		Ino:         r.uint(),
		V:           r.uint(),
		Seg:         int(r.int()),
		Segs:        int(r.int()),
		Off:         r.int(),
		Size:        r.int(),
		Vault:       r.uint(),
		VaultName:   r.str(),
		State:       UploadState(r.byte()),
		UploadID:    r.str(),
		PartSize:    r.int(),
		Started:     r.time(),
		Archive:     r.uint(),
		TreeHash:    r.hash(),
		Description: r.str(),
	}
	r.flags(&u.Uncertain, &u.Permanent)
	u.Attempts = int(r.int())
	u.Error = r.str()
	return u, r.close(key)
}

func encodeRetrieval(key []byte, t *Retrieval) []byte {
	w := newWriter(128 + len(t.VaultName) + len(t.JobID) + len(t.Error))
	w.uint(t.Archive)
	w.str(t.VaultName)
	w.int(t.Off)
	w.int(t.Len)
	w.str(t.Tier)
	w.byte(byte(t.State))
	w.str(t.JobID)
	w.time(t.Created)
	w.time(t.AskedAt)
	w.time(t.ReadyAt)
	w.time(t.Expires)
	w.int(int64(t.Attempts))
	w.int(int64(t.Expired))
	w.flags(t.Explicit, t.Uncertain, t.Adopted, t.Ahead)
	w.uint(t.Ino)
	w.uint(t.V)
	w.str(t.Error)
	return w.seal(key)
}

func decodeRetrieval(key, b []byte) (Retrieval, error) {
	r, err := open(key, b)
	if err != nil {
		return Retrieval{}, err
	}
	t := Retrieval{
		ID:        num(key, 0),
		Archive:   r.uint(),
		VaultName: r.str(),
		Off:       r.int(),
		Len:       r.int(),
		Tier:      r.str(),
		State:     RetrievalState(r.byte()),
		JobID:     r.str(),
		Created:   r.time(),
		AskedAt:   r.time(),
		ReadyAt:   r.time(),
		Expires:   r.time(),
		Attempts:  int(r.int()),
		Expired:   int(r.int()),
	}
	r.flags(&t.Explicit, &t.Uncertain, &t.Adopted, &t.Ahead)
	t.Ino = r.uint()
	t.V = r.uint()
	t.Error = r.str()
	return t, r.close(key)
}

func encodeVault(key []byte, v *Vault) []byte {
	w := newWriter(96 + len(v.Name) + len(v.QCS) + len(v.InventoryJob) + len(v.InventoryMarker))
	w.str(v.Name)
	w.str(v.QCS)
	w.time(v.Created)
	w.time(v.LastInventory)
	w.int(v.Archives)
	w.int(v.Bytes)
	w.time(v.Merged)
	w.str(v.InventoryJob)
	w.str(v.InventoryMarker)
	w.flags(v.Gone)
	return w.seal(key)
}

func decodeVault(key, b []byte) (Vault, error) {
	r, err := open(key, b)
	if err != nil {
		return Vault{}, err
	}
	v := Vault{
		Ino:             num(key, 0),
		Name:            r.str(),
		QCS:             r.str(),
		Created:         r.time(),
		LastInventory:   r.time(),
		Archives:        r.int(),
		Bytes:           r.int(),
		Merged:          r.time(),
		InventoryJob:    r.str(),
		InventoryMarker: r.str(),
	}
	r.flags(&v.Gone)
	return v, r.close(key)
}

// encodeNumber and encodeBytes are the values of the tables that hold just that.
func encodeNumber(key []byte, n uint64) []byte {
	w := newWriter(16)
	w.uint(n)
	return w.seal(key)
}

func decodeNumber(key, b []byte) (uint64, error) {
	r, err := open(key, b)
	if err != nil {
		return 0, err
	}
	n := r.uint()
	return n, r.close(key)
}

func encodeBytes(key, v []byte) []byte {
	w := newWriter(8 + len(v))
	w.b = append(w.b, v...)
	return w.seal(key)
}

// decodeBytes returns a copy.
func decodeBytes(key, b []byte) ([]byte, error) {
	r, err := open(key, b)
	if err != nil {
		return nil, err
	}
	return append([]byte{}, r.b...), nil
}

// state is what badger says of itself.
type state struct {
	id    string // the journal's
	seq   uint64 // last record applied
	stats Stats
}

func encodeState(s *state) []byte {
	w := newWriter(96)
	w.str(s.id)
	w.uint(s.seq)
	w.int(s.stats.Inodes)
	w.int(s.stats.Files)
	w.int(s.stats.LiveBytes)
	w.int(s.stats.StagedFiles)
	w.int(s.stats.StagedBytes)
	return w.seal(stateKey)
}

func decodeState(b []byte) (state, error) {
	r, err := open(stateKey, b)
	if err != nil {
		return state{}, err
	}
	s := state{id: r.str(), seq: r.uint()}
	s.stats = Stats{Inodes: r.int(), Files: r.int(), LiveBytes: r.int(), StagedFiles: r.int(), StagedBytes: r.int(), Seq: s.seq}
	return s, r.close(stateKey)
}
