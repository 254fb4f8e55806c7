package cas_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/casfs/casfs/cas"
	"github.com/casfs/casfs/cas/local"
)

// loop is endless data from a small buffer, for gigabytes that need no disk and no memory.
type loop []byte

func (l loop) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		n += copy(p[n:], l[(off+int64(n))%int64(len(l)):])
	}
	return n, nil
}

const gib = 1 << 30

func BenchmarkTreeHash1GiB(b *testing.B) {
	src := loop(random(16*mib + 8))
	for _, threads := range []int{1, 2} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			b.SetBytes(gib)
			for b.Loop() {
				if _, err := cas.TreeHashReaderAt(b.Context(), src, gib, threads); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkLinearAndTree takes both hashes in one pass.
func BenchmarkLinearAndTree(b *testing.B) {
	buf := random(16 * mib)
	b.Run("TreeHasher", func(b *testing.B) {
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			var t cas.TreeHasher
			t.Write(buf)
			t.Sum()
		}
	})
	b.Run("HashPart", func(b *testing.B) {
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			cas.HashPart(buf)
		}
	})
}

// BenchmarkUpload1GiB sends 1 GiB in parts to the embedded store over a socket, and reports how
// many times longer that takes than both hashes of the same parts.
func BenchmarkUpload1GiB(b *testing.B) {
	store, err := local.Open(local.Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	served := make(chan error, 1)
	go func() { served <- store.Serve(ctx, l) }()
	defer func() { cancel(); <-served }()
	cr := store.Credentials()
	c, err := cas.New(cas.Options{Endpoint: "http://" + l.Addr().String(), Credentials: cas.Credentials{SecretID: cr.SecretID, SecretKey: cr.SecretKey}})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if _, err := c.CreateVault(ctx, "v"); err != nil {
		b.Fatal(err)
	}
	src := loop(random(16*mib + 8))
	b.SetBytes(gib)
	var sending, hashing time.Duration
	for b.Loop() {
		began := time.Now()
		res, err := c.Upload(ctx, "v", src, gib, cas.UploadOptions{})
		if err != nil {
			b.Fatal(err)
		}
		sending += time.Since(began)

		b.StopTimer()
		if err := c.DeleteArchive(ctx, "v", res.ArchiveID); err != nil {
			b.Fatal(err)
		}
		began = time.Now()
		buf := make([]byte, cas.DefaultPart)
		for off := int64(0); off < gib; off += cas.DefaultPart {
			if _, err := io.ReadFull(io.NewSectionReader(src, off, cas.DefaultPart), buf); err != nil {
				b.Fatal(err)
			}
			cas.HashPart(buf)
		}
		hashing += time.Since(began)
		b.StartTimer()
	}
	b.ReportMetric(float64(sending)/float64(hashing), "x-hashing")
}
