package cas

import "context"

// Notification is a vault's callback configuration.
type Notification struct {
	CallBackURL string
	Events      []string
}

// SetAccessPolicy stores policy, a JSON document, on the vault (owner only).
func (c *Client) SetAccessPolicy(ctx context.Context, vault, policy string) error {
	panic("unimplemented")
}

// AccessPolicy returns the vault's policy. Errors: ErrNotFound.
func (c *Client) AccessPolicy(ctx context.Context, vault string) (string, error) {
	panic("unimplemented")
}

// DeleteAccessPolicy removes it.
func (c *Client) DeleteAccessPolicy(ctx context.Context, vault string) error { panic("unimplemented") }

// SetNotification stores the callback configuration.
func (c *Client) SetNotification(ctx context.Context, vault string, n Notification) error {
	panic("unimplemented")
}

// NotificationConfig returns it. Errors: ErrNotFound.
func (c *Client) NotificationConfig(ctx context.Context, vault string) (Notification, error) {
	panic("unimplemented")
}

// DeleteNotification removes it.
func (c *Client) DeleteNotification(ctx context.Context, vault string) error { panic("unimplemented") }
