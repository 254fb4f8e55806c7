package main

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/casfs/casfs/cache/catalog"
)

// filled makes the store and state of a casfs whose vault holds n entries, all
// files archived and cold, as after years of use. The catalog is written directly: archiving a
// million files takes an hour. Its index is one that was rebuilt, which takes half of the time of
// one that grew. It returns the base for remount.
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
	dir := filepath.Dir(states[0])
	c, err := catalog.Open(catalog.Options{Dir: dir, NoCompaction: true})
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
	if err := errors.Join(c.Close(), os.RemoveAll(filepath.Join(dir, "index"))); err != nil {
		return "", err
	}
	rebuilt, err := catalog.Open(catalog.Options{Dir: dir})
	if err != nil {
		return "", err
	}
	return p.base(), rebuilt.Close()
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

// changes are how many changes of the catalog a second are recorded, durably and
// not, against as many keys in badger's own transactions. They are the benchmarks of cache/catalog.
func (b *bench) changes() error {
	program := b.path("catalog.test")
	if out, err := exec.Command("go", "test", "-c", "-o", program, "./cache/catalog").CombinedOutput(); err != nil {
		return fmt.Errorf("go test -c: %w\n%s", err, out)
	}
	dir, err := b.fresh("changes")
	if err != nil {
		return err
	}
	perSecond := regexp.MustCompile(`([0-9.e+]+) updates/s`)
	run := func(name, bench string) contestant {
		return contestant{name, func() (float64, error) {
			cmd := exec.Command(program, "-test.run", "^$", "-test.bench", bench, "-test.benchtime", "100ms")
			cmd.Env = append(os.Environ(), "TMPDIR="+dir)
			out, err := cmd.CombinedOutput()
			m := perSecond.FindSubmatch(out)
			if err != nil || m == nil {
				return 0, fmt.Errorf("%s: %v\n%s", bench, err, out)
			}
			return strconv.ParseFloat(string(m[1]), 64)
		}}
	}
	for _, durable := range []bool{true, false} {
		for _, writers := range []int{1, 64} {
			name, how := "catalog changes", "creating a file, about six keys; badger with SyncWrites off"
			if durable {
				name, how = "durable catalog changes", "creating a file, about six keys, and waiting until that survives a power loss; badger with SyncWrites"
			}
			_, err := b.compare(fmt.Sprintf("%s, %d at a time", name, writers), how, "changes/s", false, []contestant{
				run("badger", fmt.Sprintf("^BenchmarkBadgerSync$/^sync=%t$/^writers=%d$", durable, writers)),
				run(casfs, fmt.Sprintf("^BenchmarkCreate$/^durable=%t$/^writers=%d$", durable, writers)),
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
