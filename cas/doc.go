// Package cas speaks the wire protocol of Tencent Cloud Archive Storage (CAS):
// vaults hold immutable archives; reading needs an asynchronous job; integrity
// is a SHA-256 tree hash. Client has one method per operation of the service;
// Upload and Fetch (upload.go, download.go) are the parallel, resumable,
// verified transfers on top. The package imports nothing of casfs's and keeps
// no state on disk.
package cas
