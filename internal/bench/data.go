package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const mib = 1 << 20

// source is a file of random bytes, in memory as far as the machine has room.
func (b *bench) source(size int64) (string, error) {
	name := b.path(fmt.Sprintf("source-%d", size))
	if st, err := os.Stat(name); err == nil && st.Size() == size {
		return name, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{1}), size)
	return name, err
}

// write makes a file by calls of 1 MiB and closes it, after fsync if that is wanted.
func write(name string, size int64, sync bool) error {
	buf := make([]byte, mib)
	rand.NewChaCha8([32]byte{2}).Read(buf)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	for left := size; left > 0; left -= mib {
		buf[0]++
		if _, err := f.Write(buf[:min(left, mib)]); err != nil {
			return err
		}
	}
	if sync {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return f.Close()
}

// read reads a file from beginning to end by calls of 1 MiB.
func read(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, mib)
	for {
		_, err := f.Read(buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// copyIn copies by calls of 1 MiB, and not by the kernel.
func copyIn(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, make([]byte, mib)); err != nil {
		return err
	}
	return out.Close()
}

// randomReads makes n reads of 4 KiB at random places of a file.
func randomReads(f *os.File, size int64, n int) error {
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	buf := make([]byte, 4096)
	for range n {
		if _, err := f.ReadAt(buf, rnd.Int64N(size/4096)*4096); err != nil {
			return err
		}
	}
	return nil
}

// latencies are the times of n reads of 4 KiB at random places; with reopen
// each opens the file for itself and closes it, which no passthrough can hide.
func latencies(name string, size int64, n int, reopen bool) ([]time.Duration, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	rnd := rand.New(rand.NewPCG(2, uint64(n)))
	buf := make([]byte, 4096)
	all := make([]time.Duration, 0, n)
	for range n {
		off := rnd.Int64N(size/4096) * 4096
		began := time.Now()
		if reopen {
			fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			_, err = syscall.Pread(fd, buf, off)
			if err = errors.Join(err, syscall.Close(fd)); err != nil {
				return nil, err
			}
		} else if _, err := syscall.Pread(int(f.Fd()), buf, off); err != nil {
			return nil, err
		}
		all = append(all, time.Since(began))
	}
	return all, nil
}

// smallTree makes a tree of at most n real files: the first ones of a directory.
func (b *bench) smallTree(n int) (dir string, files int, bytes int64, err error) {
	dir, err = b.fresh("tree")
	if err != nil {
		return "", 0, 0, err
	}
	err = filepath.WalkDir(b.o.tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if files == n {
			return filepath.SkipAll
		}
		rel, err := filepath.Rel(b.o.tree, path)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(to, 0o755)
		case d.Type().IsRegular():
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			bytes += int64(len(raw))
			return os.WriteFile(to, raw, 0o644)
		}
		return nil
	})
	return dir, files, bytes, err
}

// perDir is how many names a directory of a listed tree has.
const perDir = 1000

// emptyFiles makes a tree of n entries, all but the directories empty files.
func emptyFiles(dir string, n int) error {
	var sub string
	for i := range n {
		if i%perDir == 0 {
			sub = filepath.Join(dir, fmt.Sprintf("dir%04d", i/perDir))
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
			continue
		}
		fd, err := syscall.Open(filepath.Join(sub, fmt.Sprintf("file-%07d.dat", i)), syscall.O_CREAT|syscall.O_WRONLY|syscall.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		syscall.Close(fd)
	}
	return nil
}

// changeLatencies are the times of n files made in a directory, renamed and removed again.
func changeLatencies(dir string, n int) ([]time.Duration, error) {
	buf := make([]byte, 4096)
	one, two := filepath.Join(dir, "change.tmp"), filepath.Join(dir, "change")
	all := make([]time.Duration, 0, n)
	for range n {
		began := time.Now()
		if err := os.WriteFile(one, buf, 0o644); err != nil {
			return nil, err
		}
		if err := os.Rename(one, two); err != nil {
			return nil, err
		}
		if err := os.Remove(two); err != nil {
			return nil, err
		}
		all = append(all, time.Since(began))
	}
	return all, nil
}
