// Package cas speaks the wire protocol of Tencent Cloud Archive Storage (CAS):
// vaults hold immutable archives; reading needs an asynchronous job; integrity
// is a SHA-256 tree hash. Client has one method per operation of the service;
// Upload and Fetch (upload.go, download.go, fetchfile.go) are the parallel, resumable,
// verified transfers on top. The package imports nothing of casfs's and keeps
// no state on disk but what FetchJobFile leaves beside an unfinished file.
//
// Whatever may be repeated is retried by itself, signed anew each time. What
// may not, because the service would store or bill it twice (UploadArchive,
// InitiateJob), ends in an error matching ErrUnknown when its reply is lost:
// look before asking again. Errors are matched with errors.Is and the Err…
// variables; an *Error among them carries the service's own words.
package cas
