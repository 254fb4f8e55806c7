package local

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/casfs/casfs/internal/noise"
)

func randomChunk(n int) []byte {
	return noise.Bytes(n, 1)
}

// BenchmarkHash is both hashes in one pass, what an upload costs at least.
func BenchmarkHash(b *testing.B) {
	data := randomChunk(64 << 20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := receive(bytes.NewReader(data), int64(len(data)), nothing); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUpload is a part of 64 MiB through the handler to a synced file, and
// over a loopback socket.
func BenchmarkUpload(b *testing.B) {
	data := randomChunk(64 << 20)
	h := hashes(data)
	for _, wire := range []bool{false, true} {
		b.Run(fmt.Sprintf("socket=%v", wire), func(b *testing.B) {
			s, err := Open(Options{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			v, err := s.makeVault("w")
			if err != nil {
				b.Fatal(err)
			}
			s.vaults["w"] = v
			srv := httptest.NewServer(s)
			defer srv.Close()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				r := httptest.NewRequest("POST", "http://cas.test/-/vaults/w/archives", bytes.NewReader(data))
				for k, val := range h {
					r.Header.Set(k, val)
				}
				r.Header.Set("Authorization", signer{s.creds.SecretID, s.creds.SecretKey, time.Now}.sign("POST", "/-/vaults/w/archives", nil, nil))
				status, id := 0, ""
				if wire {
					r.RequestURI = ""
					r.URL.Host = srv.Listener.Addr().String()
					resp, err := http.DefaultClient.Do(r)
					if err != nil {
						b.Fatal(err)
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					status, id = resp.StatusCode, resp.Header.Get("x-cas-archive-id")
				} else {
					w := httptest.NewRecorder()
					s.ServeHTTP(w, r)
					status, id = w.Code, w.Header().Get("x-cas-archive-id")
				}
				if status != 201 {
					b.Fatal(status)
				}
				b.StopTimer()
				removeData(v.archivePath(v.archives[id].shard, id))
				b.StartTimer()
			}
		})
	}
	http.DefaultClient.CloseIdleConnections()
}

// BenchmarkSmall is archives of 1 KiB from many clients, each synced before its reply.
func BenchmarkSmall(b *testing.B) {
	s, err := Open(Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	v, err := s.makeVault("v")
	if err != nil {
		b.Fatal(err)
	}
	s.vaults["v"] = v
	data := randomChunk(1024)
	h := hashes(data)
	var failed atomic.Int64
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := httptest.NewRequest("POST", "http://cas.test/-/vaults/v/archives", bytes.NewReader(data))
			for k, val := range h {
				r.Header.Set(k, val)
			}
			r.Header.Set("Authorization", signer{s.creds.SecretID, s.creds.SecretKey, time.Now}.sign("POST", "/-/vaults/v/archives", nil, nil))
			w := httptest.NewRecorder()
			if s.ServeHTTP(w, r); w.Code != 201 {
				failed.Add(1)
			}
		}
	})
	if failed.Load() > 0 {
		b.Fatal(failed.Load(), "failed")
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "archives/s")
}

// BenchmarkOpen opens a store of 100 000 archives.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s, err := Open(Options{Dir: dir, NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	v, err := s.makeVault("v")
	if err != nil {
		b.Fatal(err)
	}
	s.vaults["v"] = v
	data := []byte("x")
	for i := range 100000 {
		if _, err := v.store(bytes.NewReader(data), 1, fmt.Sprintf("photos/2024/%06d.jpg", i), "", func(received) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := Open(Options{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		if n := s.vaults["v"].count; n != 100000 {
			b.Fatal(n)
		}
		s.Close()
	}
}
