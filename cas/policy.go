package cas

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// Notification is a vault's callback configuration.
type Notification struct {
	CallBackURL string
	Events      []string // as "ArchiveRetrievalCompleted"
}

// SetAccessPolicy stores policy, a JSON document, on the vault (owner only).
// Errors: ErrInvalid when it is no JSON object, ErrAccessDenied for a vault of another account.
func (c *Client) SetAccessPolicy(ctx context.Context, vault, policy string) error {
	const op = OpSetAccessPolicy
	var doc bytes.Buffer
	if err := json.Compact(&doc, []byte(policy)); err != nil {
		return invalid(op, "the policy is no JSON: %v", err)
	}
	if !bytes.HasPrefix(doc.Bytes(), []byte("{")) {
		return invalid(op, "the policy is no JSON object")
	}
	body, err := jsonBody(map[string]string{"policy": doc.String()})
	if err != nil {
		return invalid(op, "%v", err)
	}
	_, err = c.doPolicy(ctx, &request{op: op, method: http.MethodPut, body: body, bare: true}, vault)
	return err
}

// AccessPolicy returns the vault's policy. Errors: ErrNotFound.
func (c *Client) AccessPolicy(ctx context.Context, vault string) (string, error) {
	rep, err := c.doPolicy(ctx, &request{op: OpAccessPolicy, method: http.MethodGet}, vault)
	if err != nil {
		return "", err
	}
	return decodePolicy(rep.body)
}

// decodePolicy takes {"policy": "…"} in any case of the key, the same with an
// object for the string, and the bare policy of older documents.
func decodePolicy(body []byte) (string, error) {
	bad := func() (string, error) { return "", badReply(OpAccessPolicy, "no policy in it") }
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(body, &doc); err != nil {
		return "", badReply(OpAccessPolicy, "%v", err)
	}
	text, found := json.RawMessage(body), false
	for k, v := range doc {
		switch {
		case strings.EqualFold(k, "policy"):
			text, found = v, true
		case strings.EqualFold(k, "statement"):
			found = true // the policy itself
		}
	}
	if !found {
		return bad()
	}
	var s string
	if json.Unmarshal(text, &s) == nil {
		return s, nil
	}
	var out bytes.Buffer
	if err := json.Compact(&out, text); err != nil {
		return bad()
	}
	return out.String(), nil
}

// DeleteAccessPolicy removes it.
func (c *Client) DeleteAccessPolicy(ctx context.Context, vault string) error {
	_, err := c.doPolicy(ctx, &request{op: OpDeleteAccessPolicy, method: http.MethodDelete, bare: true}, vault)
	return err
}

// doPolicy sends a call that the service takes from the owner only, who is
// named "-" in it. With a numeric account the vault of that name under "-" may be another
// one, ours instead of theirs, so whose it is gets checked once.
func (c *Client) doPolicy(ctx context.Context, r *request, vault string) (*reply, error) {
	if err := checkVault(r.op, vault); err != nil {
		return nil, err
	}
	if err := c.checkOwner(ctx, r.op, vault); err != nil {
		return nil, err
	}
	r.uid, r.path = "-", "/vaults/"+vault+"/access-policy"
	return c.do(ctx, r)
}

func (c *Client) checkOwner(ctx context.Context, op, vault string) error {
	if c.uid == "-" {
		return nil
	}
	c.ownerMu.Lock()
	known := c.owner
	c.ownerMu.Unlock()
	if known {
		return nil
	}
	v, err := c.describeVault(ctx, "-", vault)
	if err != nil {
		return err
	}
	if !strings.Contains(v.QCS, ":uid/"+c.uid+":") {
		return fmt.Errorf("cas: %s: %w: %s is not the account that signs", op, ErrAccessDenied, c.uid)
	}
	c.ownerMu.Lock()
	c.owner = true
	c.ownerMu.Unlock()
	return nil
}

func (c *Client) doNotification(ctx context.Context, r *request, vault string) (*reply, error) {
	if err := checkVault(r.op, vault); err != nil {
		return nil, err
	}
	r.path = "/vaults/" + vault + "/notification-configuration"
	return c.do(ctx, r)
}

// SetNotification stores the callback configuration.
func (c *Client) SetNotification(ctx context.Context, vault string, n Notification) error {
	body, err := jsonBody(struct {
		CallBackUrl string
		Events      []string
	}{n.CallBackURL, n.Events})
	if err != nil {
		return invalid(OpSetNotification, "%v", err)
	}
	_, err = c.doNotification(ctx, &request{op: OpSetNotification, method: http.MethodPut, body: body, bare: true}, vault)
	return err
}

// NotificationConfig returns it. Errors: ErrNotFound.
func (c *Client) NotificationConfig(ctx context.Context, vault string) (Notification, error) {
	const op = OpNotificationConfig
	rep, err := c.doNotification(ctx, &request{op: op, method: http.MethodGet}, vault)
	if err != nil {
		return Notification{}, err
	}
	var w struct {
		CallBackUrl flexString
		Events      []string
		Event       []string // a spelling in the documents
	}
	if err := rep.decode(op, &w); err != nil {
		return Notification{}, err
	}
	return Notification{CallBackURL: string(w.CallBackUrl), Events: append(w.Events, w.Event...)}, nil
}

// DeleteNotification removes it.
func (c *Client) DeleteNotification(ctx context.Context, vault string) error {
	_, err := c.doNotification(ctx, &request{op: OpDeleteNotification, method: http.MethodDelete, bare: true}, vault)
	return err
}

// jsonBody leaves text as it is: no \u003c for "<".
func jsonBody(v any) (Body, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.NewReader(bytes.TrimSuffix(b.Bytes(), []byte("\n"))), nil
}
