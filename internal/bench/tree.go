package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// smallFiles copies a tree of small files in.
func (b *bench) smallFiles() error {
	peers, err := b.namePeers()
	if err != nil {
		return err
	}
	tree, files, bytes, err := b.smallTree(b.o.files)
	if err != nil {
		return err
	}
	part, partFiles, partBytes, err := b.smallTree(b.o.files / 10)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d files, %.0f MB", files, mb(bytes))
	if b.rclone != "" {
		b.note("rclone is given the first %d files only: all of them take it minutes. The rate is that of these, and flatters it: it falls with the number of files in its cache.", partFiles)
	}
	for _, tool := range []struct {
		name string
		argv []string
	}{{"cp -r", []string{"cp", "-r"}}, {"rsync -a", []string{"rsync", "-a"}}} {
		if _, err := exec.LookPath(tool.argv[0]); err != nil {
			b.note("%s is not installed.", tool.argv[0])
			continue
		}
		r, err := b.once(tool.name+" in, "+what, "`"+tool.name+"` of the first files of the Go source tree, to its end, to a new directory each time", "files/s", each(peers, func(p *peer) (float64, error) {
			to, tree, files := b.copyTo(p.dir), tree, files
			if p.name == rclone {
				tree, files = part, partFiles
			}
			return rate(float64(files), func() error { return command(tool.argv[0], append(tool.argv[1:], tree+"/.", to)...) })
		}))
		if err != nil {
			return err
		}
		b.values["small/disk "+tool.name] = r.ratio(disk)
		b.values["small/fuse "+tool.name] = r.between(loopPass, disk)
		b.values["small/loopback "+tool.name] = r.ratio(loopPass)
		b.values["small/bound "+tool.name] = r.between(loopPass, rclone)
		b.values["small/rclone "+tool.name] = r.ratio(rclone)
	}
	b.peaks("peak RSS after these copies", peers)
	if err := b.stopAll(); err != nil {
		return err
	}
	return b.smallToArchived(part, partFiles, fmt.Sprintf("%d files, %.0f MB", partFiles, mb(partBytes)))
}

// namePeers starts the peers for what is about the number of files.
func (b *bench) namePeers() ([]*peer, error) {
	peers, err := b.peers()
	if err != nil {
		return nil, err
	}
	peers = oneLoopback(peers)
	return peers, startAll(peers)
}

// oneLoopback leaves out the loopback without passthrough, which is about the bytes of files and not about their number.
func oneLoopback(peers []*peer) []*peer {
	return slices.DeleteFunc(peers, func(p *peer) bool { return p.name == loopback })
}

// copyTo names a directory to copy a tree to, another one each time: ext4 creates
// files slowly where many were deleted a moment ago, so nothing is deleted between rounds.
func (b *bench) copyTo(dir string) string {
	b.next++
	return filepath.Join(dir, fmt.Sprintf("copy-%d", b.next))
}

// smallToArchived copies a tree in and waits until each file is an archive.
func (b *bench) smallToArchived(tree string, files int, what string) error {
	c, plain, err := b.besideDisk()
	if err != nil {
		return err
	}
	copied := func(dir string, durable func(to string) error) contestant {
		name := disk
		if dir == c.dir {
			name = casfs
		}
		return contestant{name, func() (float64, error) {
			to := b.copyTo(dir)
			return rate(float64(files), func() error {
				if err := command("cp", "-r", tree+"/.", to); err != nil {
					return err
				}
				return durable(to)
			})
		}}
	}
	r, err := b.once("`cp -r` in, to archived, "+what, "`cp -r`, then `casfs sync`; on the disk `sync -f`", "files/s", []contestant{
		copied(plain, func(to string) error { return command("sync", "-f", to) }),
		copied(c.dir, func(to string) error { _, err := b.verb("sync", to); return err }),
	})
	if err != nil {
		return err
	}
	b.values["small/archived"] = r.ratio(disk)
	b.peaks("peak RSS after that", []*peer{c})
	return nil
}

// metadata creates, stats and removes empty files.
func (b *bench) metadata() error {
	peers, err := b.namePeers()
	if err != nil {
		return err
	}
	n := b.o.create
	name := func(p *peer, i int) string { return filepath.Join(p.dir, fmt.Sprintf("f%06d", i)) }
	times := map[string][3][]float64{}
	whole := each(peers, func(p *peer) (float64, error) {
		var t [3]float64
		began := time.Now()
		lap := func(i int) {
			now := time.Now()
			t[i] = float64(n) / now.Sub(began).Seconds()
			began = now
		}
		for i := range n {
			f, err := os.OpenFile(name(p, i), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return 0, err
			}
			if err := f.Close(); err != nil {
				return 0, err
			}
		}
		lap(0)
		if err := dropCaches("2"); err != nil {
			return 0, err
		}
		began = time.Now()
		for i := range n {
			if _, err := os.Lstat(name(p, i)); err != nil {
				return 0, err
			}
		}
		lap(1)
		for i := range n {
			if err := os.Remove(name(p, i)); err != nil {
				return 0, err
			}
		}
		lap(2)
		all := times[p.name]
		for i := range t {
			all[i] = append(all[i], t[i])
		}
		times[p.name] = all
		return t[0], nil
	})
	r, err := b.compare("create", "open(O_CREAT|O_EXCL), close of empty files in one directory", "files/s", false, whole)
	if err != nil {
		return err
	}
	for i, more := range []struct{ name, how string }{{"stat", "lstat of each, the kernel's inode cache dropped before"}, {"unlink", "unlink of each"}} {
		s := &result{name: more.name, how: more.how, unit: "files/s", peers: r.peers, cells: map[string][]float64{}}
		for _, p := range r.peers {
			s.cells[p] = times[p][i+1][b.o.warm:]
		}
		b.results = append(b.results, s)
	}
	return nil
}

// lists walks large trees whose names nobody has in memory.
func (b *bench) lists() error {
	for _, n := range b.o.lists {
		below, err := b.fresh("list")
		if err != nil {
			return err
		}
		if err := emptyFiles(below, n); err != nil {
			return err
		}
		peers, err := b.over(below, false)
		if err != nil {
			return err
		}
		peers = oneLoopback(peers)
		base, err := b.filled(n)
		if err != nil {
			return err
		}
		peers = append(peers, b.remount(base))
		for _, w := range []struct {
			name string
			argv []string
		}{{"find -ls", []string{"find", "DIR", "-ls"}}, {"ls -lR", []string{"ls", "-lR", "DIR"}}, {"du -s", []string{"du", "-s", "DIR"}}} {
			peers := peers
			if w.argv[0] != "find" && n > b.o.lists[0] {
				// It takes minutes, and the smaller tree has shown the ratio.
				peers = slices.DeleteFunc(slices.Clone(peers), func(p *peer) bool { return p.name == rclone })
			}
			r, err := b.cold(fmt.Sprintf("`%s`, cold, %d entries", w.name, n), "just mounted, the kernel's inode cache dropped", "ms", each(peers, func(p *peer) (float64, error) {
				if err := p.start(); err != nil {
					return 0, err
				}
				if err := dropCaches("2"); err != nil {
					return 0, err
				}
				argv := append([]string(nil), w.argv...)
				for i := range argv {
					if argv[i] == "DIR" {
						argv[i] = p.dir
					}
				}
				began := time.Now()
				if err := command(argv[0], argv[1:]...); err != nil {
					return 0, err
				}
				return time.Since(began).Seconds() * 1000, p.stop()
			}))
			if err != nil {
				return err
			}
			if w.argv[0] == "find" && n == b.o.lists[len(b.o.lists)-1] {
				b.values["list/disk"] = 1 / r.ratio(disk)
				b.values["list/fuse"] = 1 / r.between(loopPass, disk)
				b.values["list/loopback"] = r.ratio(loopPass)
				b.values["list/rclone"] = r.ratio(rclone)
			}
		}
	}
	return nil
}
