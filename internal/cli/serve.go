package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/casfs/casfs/cas/local"
	"github.com/casfs/casfs/internal/control"
)

func (a *app) serveCmd() *cobra.Command {
	var dir, listen, cert, key string
	var inventoryAge string
	cmd := &cobra.Command{
		Use:   "serve --dir DIR --listen ADDR",
		Short: "offer the embedded store to other machines and tools",
		Long: `Serves the archive service's protocol from a local directory, for casfs,
cascmd and the SDKs. The first line printed is the address. On first start a key is made; it stands
with the address in DIR/credentials, a file that --config-file, cascmd and the
SDKs take as it is. Port 0 picks a free port.

  casfs serve --dir /srv/store --listen 127.0.0.1:8080
  casfs vault list --config-file /srv/store/credentials`,
		Args: positional(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			if dir == "" {
				return usagef("missing --dir (usage: casfs serve --dir DIR --listen ADDR)")
			}
			if (cert == "") != (key == "") {
				return usagef("--tls-cert and --tls-key go together")
			}
			return a.serve(cmd.Context(), dir, listen, cert, key, inventoryAge)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&dir, "dir", "", "the store's directory, made when missing")
	fl.StringVar(&listen, "listen", "127.0.0.1:0", "address to listen on")
	fl.StringVar(&cert, "tls-cert", "", "certificate `file` (PEM): serve https")
	fl.StringVar(&key, "tls-key", "", "the certificate's key `file` (PEM)")
	fl.StringVar(&inventoryAge, "inventory-age", "0", "inventories and counts are as old as this `duration` (the real service: 24h)")
	addSettings(fl, &a.set, gDelays|gLog)
	fl.Lookup("log-file").Usage = "log here (default: standard error)" // there is no --daemon
	return cmd
}

func (a *app) serve(ctx context.Context, dir, listen, cert, key, inventoryAge string) error {
	age, err := parseDuration(inventoryAge)
	if err != nil {
		return usagef("--inventory-age: %v", err)
	}
	if dir, err = absolute(dir); err != nil {
		return err
	}
	log, done, err := a.set.openLog(a.errOut, a.set.LogFile)
	if err != nil {
		return err
	}
	defer done()
	var tlsConfig *tls.Config
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("certificate: %w", err)
		}
		tlsConfig = &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	}
	o := a.set.storeOptions(dir, log)
	o.InventoryAge = age
	store, err := local.Open(o)
	if err != nil {
		return err
	}
	defer store.Close()
	tcp, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	scheme := "http"
	l := tcp
	if tlsConfig != nil {
		l, scheme = tls.NewListener(tcp, tlsConfig), "https"
	}
	sweepSockets(dir)
	unix, err := control.Listen(filepath.Join(dir, publicSocket))
	if err != nil {
		tcp.Close()
		return err
	}
	defer unix.Close()
	endpoint := scheme + "://" + reachable(tcp.Addr())
	if err := store.SetEndpoint(endpoint); err != nil {
		tcp.Close()
		return err
	}
	a.printf("listening on %s\n", endpoint)
	log.Info("serving", "dir", dir, "endpoint", endpoint, "credentials", filepath.Join(dir, "credentials"), "pid", os.Getpid())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return store.Serve(ctx, l) })
	g.Go(func() error { return store.Serve(ctx, unix) })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	log.Info("stopped")
	return nil
}

// reachable is the address for clients on this machine: a wildcard becomes the loopback address.
func reachable(addr net.Addr) string {
	t, ok := addr.(*net.TCPAddr)
	if !ok || !t.IP.IsUnspecified() {
		return addr.String()
	}
	// A listener on "::" takes IPv4 as well.
	return (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: t.Port}).String()
}
