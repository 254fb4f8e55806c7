package local

import (
	"context"
	"net"
	"net/http"
	"time"
)

// Serve accepts connections on l until ctx ends, then lets requests in flight
// finish for up to 10 s. It mends request heads with several Host lines before net/http sees them.
func (s *Store) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: s, ReadHeaderTimeout: s.stall(), IdleTimeout: 2 * time.Minute, DisableGeneralOptionsHandler: true}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err := srv.Shutdown(grace)
		if err != nil {
			srv.Close()
		}
		stopped <- err
	})
	err := srv.Serve(l)
	if stop() {
		srv.Close()
		return err
	}
	return <-stopped
}
