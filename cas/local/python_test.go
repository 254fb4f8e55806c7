package local

import (
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serve runs a store on a loopback port until the end of the test.
func serve(t *testing.T, o Options) (s *Store, addr string) {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	if err := s.SetEndpoint(addr); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, addr
}

// A client in another language, written from the wire contract alone.
func TestPythonClient(t *testing.T) {
	py, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("python3 is needed for this test (Debian: apt-get install python3)")
	}
	s, _ := serve(t, Options{Region: "ap-guangzhou"})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, py, filepath.Join("..", "..", "testdata", "pyclient", "casclient.py"),
		"--config", filepath.Join(s.dir, "credentials"), "selftest")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "selftest ok\n") {
		t.Fatalf("%v\n%s", err, out)
	}
}
