package local

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
)

const maxPolicy = 20 << 10 // bytes, as Glacier's

// notification is a vault's callback configuration, on the wire and on disk.
type notification struct {
	CallBackUrl string
	Events      []string
}

// Events of finished jobs by job type.
var events = map[string]string{
	"archive-retrieval":   "ArchiveRetrievalCompleted",
	"inventory-retrieval": "InventoryRetrievalCompleted",
	"push-to-cos":         "PushToCOSCompleted",
	"pull-from-cos":       "PullFromCOSCompleted",
}

func (s *Store) setAccessPolicy(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	var body map[string]json.RawMessage
	if err := r.decodeJSON(&body); err != nil {
		return err
	}
	raw, ok := body["policy"]
	if !ok {
		raw, ok = body["Policy"] // old documents
	}
	if !ok {
		return missing("policy")
	}
	var policy string
	if err := json.Unmarshal(raw, &policy); err != nil {
		return malformed("policy must be a string holding JSON")
	}
	if policy == "" || len(policy) > maxPolicy {
		return invalid("policy must have 1 to %d bytes", maxPolicy)
	}
	if err := v.update(&record{Type: "policy", Text: policy}); err != nil {
		return err
	}
	r.reply(http.StatusNoContent)
	return nil
}

func (s *Store) getAccessPolicy(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	v.mu.Lock()
	policy := v.policy
	v.mu.Unlock()
	if policy == "" {
		return notFound("vault %s has no access policy", v.name)
	}
	return r.replyJSON(http.StatusOK, map[string]string{"policy": policy})
}

func (s *Store) deleteAccessPolicy(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	if err := v.update(&record{Type: "policy"}); err != nil {
		return err
	}
	r.reply(http.StatusNoContent)
	return nil
}

func (s *Store) setNotification(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	var n notification
	if err := r.decodeJSON(&n); err != nil {
		return err
	}
	if n.CallBackUrl == "" {
		return missing("CallBackUrl")
	}
	if err := checkCallback(n.CallBackUrl); err != nil {
		return err
	}
	if len(n.Events) == 0 {
		return missing("Events")
	}
	for _, e := range n.Events {
		known := false
		for _, k := range events {
			known = known || k == e
		}
		if !known {
			return invalid("unknown event %.64q", e)
		}
	}
	slices.Sort(n.Events)
	n.Events = slices.Compact(n.Events)
	if err := v.update(&record{Type: "notify", Notify: &n, At: s.nowMillis()}); err != nil {
		return err
	}
	r.reply(http.StatusNoContent)
	return nil
}

func (s *Store) getNotification(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	v.mu.Lock()
	n := v.notify
	v.mu.Unlock()
	if n == nil {
		return notFound("vault %s has no notification configuration", v.name)
	}
	return r.replyJSON(http.StatusOK, n)
}

func (s *Store) deleteNotification(r *request) error {
	v, err := s.vault(r.vault)
	if err != nil {
		return err
	}
	if err := v.update(&record{Type: "notify"}); err != nil {
		return err
	}
	r.reply(http.StatusNoContent)
	return nil
}

func checkCallback(url string) error {
	if !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") {
		return invalid("CallBackUrl must begin with http:// or https://")
	}
	if len(url) > 2048 {
		return invalid("CallBackUrl is too long")
	}
	return nil
}
