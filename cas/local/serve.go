package local

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Serve accepts connections on l until ctx ends, then lets requests in flight
// finish for up to 10 s. It mends request heads with several Host lines before
// net/http sees them. It speaks HTTP/1.1; for HTTPS give it a TLS listener.
// It returns nil when ctx ended it, after the last request has.
func (s *Store) Serve(ctx context.Context, l net.Listener) error {
	var running sync.RWMutex // held for reading by every request
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			running.RLock()
			defer running.RUnlock()
			s.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout:            s.stall(),
		IdleTimeout:                  2 * time.Minute,
		DisableGeneralOptionsHandler: true,
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:                     slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(headListener{l, s})
	if stop() {
		srv.Close()
	} else {
		<-stopped
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
	}
	running.Lock() // until the last request has ended
	defer running.Unlock()
	return err
}
