package main

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// filled makes the store and state of a casfs whose vault holds n entries, all
// files archived and cold, as after years of use. The catalog is written directly: archiving a
// million files takes an hour. It returns the base for remount.
//
// It is made once for each n.
func (b *bench) filled(n int) (string, error) {
	if base := b.bases[n]; base != "" {
		return base, nil
	}
	began := time.Now()
	base, err := b.fill(n)
	if err == nil {
		b.bases[n] = base
		fmt.Printf("   (a catalog of %d entries took %.0f s)\n", n, time.Since(began).Seconds())
	}
	return base, err
}

func (b *bench) fill(n int) (string, error) {
	p, err := b.mount()
	if err != nil {
		return "", err
	}
	if err := p.start(); err != nil {
		return "", err
	}
	if err := p.stop(); err != nil {
		return "", err
	}
	states, err := filepath.Glob(filepath.Join(p.base(), "state", "*", "format"))
	if err != nil || len(states) != 1 {
		return "", fmt.Errorf("state directories: %v (%w)", states, err)
	}
	c, err := catalog.Open(catalog.Options{Dir: filepath.Dir(states[0])})
	if err != nil {
		return "", err
	}
	defer c.Close()
	var v catalog.Vault
	if err := c.View(func(tx *catalog.Tx) (err error) { v, err = tx.VaultByName(vault); return err }); err != nil {
		return "", err
	}
	now := time.Now().UnixNano()
	for done := 0; done < n; {
		// One directory with its files in one change.
		first := done
		done = min(done+perDir, n)
		_, err := c.Update(func(tx *catalog.Tx) error {
			dir, err := tx.Create(v.Ino, fmt.Sprintf("dir%04d", first/perDir), catalog.Inode{Mode: 0o040755}, now)
			if err != nil {
				return err
			}
			for i := first + 1; i < done; i++ {
				if err := coldFile(tx, v, dir.Ino, fmt.Sprintf("file-%07d.dat", i), int64(100_000+i%5000), now); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return p.base(), c.Close()
}

// coldFile records a file that is in the vault only.
func coldFile(tx *catalog.Tx, v catalog.Vault, dir uint64, name string, size, now int64) error {
	i, err := tx.Create(dir, name, catalog.Inode{Mode: 0o100644}, now)
	if err != nil {
		return err
	}
	i.Version, i.Size = 1, size
	num := tx.NextID()
	sum := sha256.Sum256(fmt.Appendf(nil, "%d", num))
	err = tx.PutArchive(catalog.Archive{
		Num: num, Vault: v.Ino, VaultName: v.Name, ID: base64.RawURLEncoding.EncodeToString(append(sum[:], sum[:]...)),
		Size: size, TreeHash: sum, Created: now, State: catalog.Live, Ino: i.Ino, V: 1, Intent: fmt.Sprintf("%x", sum[:8]),
		Description: fmt.Sprintf("casfs1 id=%x ino=%d v=1 size=%d mtime=%d mode=100644 uid=0 gid=0 path=%s", sum[:8], i.Ino, size, now, name),
	})
	if err != nil {
		return err
	}
	err = tx.PutVersion(catalog.Version{
		Ino: i.Ino, V: 1, State: catalog.Archived, Size: size, Mtime: now, TreeHash: sum,
		Extents: []catalog.Extent{{Archive: num, Len: size}}, StagedAt: now, ArchivedAt: now,
	})
	if err != nil {
		return err
	}
	return tx.PutInode(i)
}
