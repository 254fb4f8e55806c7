// Package control is the socket between a verb and a running mount: HTTP with
// JSON bodies over a unix socket of mode 0600 in the mount's state directory.
// It holds both ends, so that they cannot disagree.
//
// A request is POST /v1/<verb> with a JSON body. The reply is a sequence of JSON
// lines: any number of events (progress, reports), then exactly one line with
// either the result or an error. A reply that ends without that line means
// that the daemon died. Closing the connection cancels the request's context in the daemon.
package control
