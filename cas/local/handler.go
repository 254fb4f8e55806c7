package local

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// request is one call on its way through the service.
type request struct {
	http    *http.Request
	w       http.ResponseWriter
	body    *bodyReader
	rawPath string   // as sent, before "?"
	hosts   []string // every Host value seen
	query   []queryParam

	uid, vault, item string // decoded path segments
}

// operation is what a method and path mean.
type operation func(*Store, *request) error

// ServeHTTP implements the service; usable in process. Requests with two Host
// headers only get here through Serve, which mends the head first.
func (s *Store) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	r := &request{http: hr, w: w, body: s.newBody(w, hr)}
	r.header("X-Cas-Requestid", newID(32))
	r.header("Date", s.now().UTC().Format(http.TimeFormat))
	if err := s.serve(r); err != nil {
		s.fail(r, err)
	}
	s.sweep()
}

func (s *Store) serve(r *request) error {
	if err := s.readHead(r); err != nil {
		return err
	}
	target := r.http.RequestURI
	if target == "" {
		target = r.http.URL.RequestURI()
	}
	if i := strings.Index(target, "://"); i >= 0 && !strings.HasPrefix(target, "/") {
		// The absolute form, which proxies send.
		if j := strings.IndexByte(target[i+3:], '/'); j >= 0 {
			target = target[i+3+j:]
		} else {
			target = "/"
		}
	}
	var rawQuery string
	r.rawPath, rawQuery, _ = strings.Cut(target, "?")
	var err error
	if r.query, err = parseQuery(rawQuery); err != nil {
		return err
	}
	if s.throttled() {
		return refuse(http.StatusBadRequest, "ThrottlingException", "more than %d requests per second", s.maxRate)
	}
	if err := s.authenticate(r); err != nil {
		return err
	}
	if err := s.there(); err != nil {
		return err
	}
	op, err := route(r)
	if err != nil {
		return err
	}
	if r.uid != "-" && r.uid != s.creds.AppID {
		return denied("account %.32q is not served here", r.uid)
	}
	return op(s, r)
}

// route finds the operation and fills in the path's segments. It works on the
// raw path: no cleaning, since "." and ".." are legal vault names.
func route(r *request) (operation, error) {
	segs := strings.Split(strings.TrimPrefix(r.rawPath, "/"), "/")
	for i, seg := range segs {
		d, err := url.PathUnescape(seg)
		if err != nil {
			return nil, badRequest("the path is malformed")
		}
		segs[i] = d
	}
	unknown := notFound("there is no operation %.16s %.256q", r.http.Method, r.rawPath)
	if len(segs) < 2 || len(segs) > 6 || segs[1] != "vaults" || segs[0] == "" {
		return nil, unknown
	}
	r.uid = segs[0]
	shape := ""
	if len(segs) > 2 {
		r.vault = segs[2]
		shape = "V"
	}
	if len(segs) > 3 {
		shape += "/" + segs[3]
	}
	if len(segs) > 4 {
		r.item = segs[4]
		shape += "/I"
	}
	if len(segs) > 5 {
		shape += "/" + segs[5]
	}
	op := routes[r.http.Method+" "+shape]
	if op == nil || len(segs) > 2 && r.vault == "" || len(segs) > 4 && r.item == "" {
		return nil, unknown
	}
	return op, nil
}

var routes = map[string]operation{
	"GET ":     (*Store).listVaults,
	"PUT V":    (*Store).createVault,
	"GET V":    (*Store).describeVault,
	"DELETE V": (*Store).deleteVault,

	"POST V/archives":     (*Store).uploadArchive,
	"DELETE V/archives/I": (*Store).deleteArchive,

	"POST V/multipart-uploads":     (*Store).initiateUpload,
	"GET V/multipart-uploads":      (*Store).listUploads,
	"PUT V/multipart-uploads/I":    (*Store).uploadPart,
	"POST V/multipart-uploads/I":   (*Store).completeUpload,
	"GET V/multipart-uploads/I":    (*Store).listParts,
	"DELETE V/multipart-uploads/I": (*Store).abortUpload,

	"POST V/jobs":         (*Store).initiateJob,
	"GET V/jobs":          (*Store).listJobs,
	"GET V/jobs/I":        (*Store).describeJob,
	"GET V/jobs/I/output": (*Store).jobOutput,
	"GET V/jobs/I/Output": (*Store).jobOutput, // the capital of old documents

	"PUT V/access-policy":    (*Store).setAccessPolicy,
	"GET V/access-policy":    (*Store).getAccessPolicy,
	"DELETE V/access-policy": (*Store).deleteAccessPolicy,

	"PUT V/notification-configuration":    (*Store).setNotification,
	"GET V/notification-configuration":    (*Store).getNotification,
	"DELETE V/notification-configuration": (*Store).deleteNotification,
}

// param returns a query parameter, "" when absent.
func (r *request) param(name string) string {
	for _, p := range r.query {
		if asciiLower(p.name) == name {
			return p.value
		}
	}
	return ""
}

func (r *request) header(name, value string) { r.w.Header().Set(name, value) }

// location sets the Location header to a path below the request's vault.
func (r *request) location(kind, id string) {
	r.header("Location", "/"+r.uid+"/vaults/"+r.vault+"/"+kind+"/"+id)
}

// reply sends a status without a body, and so without a Content-Type: the
// official SDK parses a body whose type is set.
func (r *request) reply(status int) { r.w.WriteHeader(status) }

func (r *request) replyJSON(status int, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	r.header("Content-Type", "application/json")
	r.header("Content-Length", strconv.Itoa(buf.Len()))
	r.w.WriteHeader(status)
	r.w.Write(buf.Bytes())
	return nil
}

// fail answers a refusal. The body of the request is read first, whatever its
// size up to the largest legal one: clients that send it all before they look
// would see a reset instead of the error. A client that asked whether to go on
// (Expect: 100-continue) is told no at once.
func (s *Store) fail(r *request, err error) {
	e := asAPIError(err)
	if e.status >= 500 {
		s.logger.Error("request failed", "method", r.http.Method, "path", r.rawPath, "error", err,
			"request", r.w.Header().Get("X-Cas-Requestid"))
	} else {
		s.logger.Debug("request refused", "method", r.http.Method, "path", r.rawPath, "error", err,
			"request", r.w.Header().Get("X-Cas-Requestid"))
	}
	waiting := r.body.n == 0 && strings.EqualFold(r.http.Header.Get("Expect"), "100-continue")
	if e.close || waiting || !r.body.drain() {
		r.header("Connection", "close")
		r.body.abandon(r.http.Context())
	}
	for _, h := range []string{"Location", "Content-Range", "Content-Length"} {
		r.w.Header().Del(h)
	}
	// Paths are the log's business, not the client's.
	msg := strings.ReplaceAll(e.msg, s.dir, "…")
	if err := r.replyJSON(e.status, errorJSON{Code: e.code, Message: msg, Type: e.kind()}); err != nil {
		s.logger.Error("cannot encode error", "error", err)
	}
}

type errorJSON struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Type    string `json:"type"`
}

// decodeJSON reads a JSON body into v. The SDKs send no Content-Type.
func (r *request) decodeJSON(v any) error {
	if r.body.size > maxJSON {
		return malformed("the body is larger than %d bytes", maxJSON)
	}
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(http.MaxBytesReader(nil, struct {
		*bodyReader
		nopCloser
	}{r.body, nopCloser{}}, maxJSON)); err != nil {
		if e, ok := err.(*http.MaxBytesError); ok {
			return malformed("the body is larger than %d bytes", e.Limit)
		}
		return err
	}
	if err := json.Unmarshal(buf.Bytes(), v); err != nil {
		return malformed("the body is not the JSON expected: %v", err)
	}
	return nil
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

// throttled counts requests per second when a limit is set.
func (s *Store) throttled() bool {
	if s.maxRate <= 0 {
		return false
	}
	s.rateMu.Lock()
	defer s.rateMu.Unlock()
	if now := s.now().Truncate(time.Second); !now.Equal(s.rateSecond) {
		s.rateSecond, s.rateCount = now, 0
	}
	s.rateCount++
	return s.rateCount > s.maxRate
}
