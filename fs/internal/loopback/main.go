// Command loopback mounts a directory on another with go-fuse's loopback
// example: what FUSE itself costs, for internal/bench to compare with.
//
// With -passthrough=false the kernel asks it for every read and write instead
// of going to the file below by itself.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	passthrough := flag.Bool("passthrough", true, "let the kernel read and write the files below by itself")
	flag.Parse()
	if flag.NArg() != 2 {
		log.Fatal("usage: loopback [-passthrough=false] DIRECTORY MOUNTPOINT")
	}
	root, err := fusefs.NewLoopbackRoot(flag.Arg(0))
	if err != nil {
		log.Fatal(err)
	}
	if !*passthrough {
		data := root.(*fusefs.LoopbackNode).RootData
		data.NewNode = func(data *fusefs.LoopbackRoot, _ *fusefs.Inode, _ string, _ *syscall.Stat_t) fusefs.InodeEmbedder {
			return &node{fusefs.LoopbackNode{RootData: data}}
		}
		top := &node{fusefs.LoopbackNode{RootData: data}}
		data.RootNode = top
		root = top
	}
	timeout := time.Second // as the example does
	server, err := fusefs.Mount(flag.Arg(1), root, &fusefs.Options{
		AttrTimeout: &timeout, EntryTimeout: &timeout, NullPermissions: true,
		MountOptions: fuse.MountOptions{FsName: flag.Arg(0), Name: "loopback"},
	})
	if err != nil {
		log.Fatal(err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for range signals {
			server.Unmount()
		}
	}()
	server.Wait()
}

// node is the example's, whose open files hide that they are files below.
type node struct{ fusefs.LoopbackNode }

func (n *node) Open(ctx context.Context, flags uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	f, fuseFlags, errno := n.LoopbackNode.Open(ctx, flags)
	return plain(f), fuseFlags, errno
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fusefs.Inode, fusefs.FileHandle, uint32, syscall.Errno) {
	i, f, fuseFlags, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return i, plain(f), fuseFlags, errno
}

func (n *node) CopyFileRange(ctx context.Context, in fusefs.FileHandle, offIn uint64, out *fusefs.Inode, fout fusefs.FileHandle, offOut, size, flags uint64) (uint32, syscall.Errno) {
	below := func(f fusefs.FileHandle) fusefs.FileHandle {
		if p, ok := f.(*file); ok {
			return p.below
		}
		return f
	}
	return n.LoopbackNode.CopyFileRange(ctx, below(in), offIn, out, below(fout), offOut, size, flags)
}

// file is a LoopbackFile without PassthroughFd.
type file struct {
	calls
	below *fusefs.LoopbackFile
}

// calls are the requests that file passes on.
type calls interface {
	fusefs.FileReader
	fusefs.FileWriter
	fusefs.FileFlusher
	fusefs.FileReleaser
	fusefs.FileFsyncer
	fusefs.FileGetattrer
	fusefs.FileSetattrer
	fusefs.FileLseeker
	fusefs.FileAllocater
}

func plain(f fusefs.FileHandle) fusefs.FileHandle {
	if l, ok := f.(*fusefs.LoopbackFile); ok {
		return &file{l, l}
	}
	return f
}
