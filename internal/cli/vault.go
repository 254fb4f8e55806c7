package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/casfs/casfs/cas"
)

const gAnyService = gService | gDelays

// serviceVerb makes a verb that needs the service: flags of the account, --json, and a connected client.
func (a *app) serviceVerb(use, short string, least, most int, run func(cmd *cobra.Command, c *cas.Client, args []string) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: positional(least, most)}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := a.connect(nil)
		if err != nil {
			return err
		}
		return badArgs(run(cmd, s.client, args))
	}
	addSettings(cmd.Flags(), &a.set, gAnyService)
	for _, name := range []string{"expedited", "standard", "bulk", "inventory", "realistic"} {
		cmd.Flags().MarkHidden(name) // documented at serve and mount
	}
	return cmd
}

// vaultVerb is a serviceVerb whose first argument is a vault.
func (a *app) vaultVerb(use, short string, least, most int, run func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error) *cobra.Command {
	if most >= 0 {
		most++
	}
	cmd := a.serviceVerb(use, short, least+1, most, nil)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		vault, err := parseVault(args[0])
		if err != nil {
			return err
		}
		s, err := a.connect(nil)
		if err != nil {
			return err
		}
		return badArgs(run(cmd, s.client, vault, args[1:]))
	}
	return cmd
}

// pageFlags are cascmd's --marker and --limit: one page instead of everything.
func pageFlags(cmd *cobra.Command, p *cas.Page) {
	cmd.Flags().StringVar(&p.Marker, "marker", "", "begin here (the marker of an earlier page)")
	cmd.Flags().IntVar(&p.Limit, "limit", 0, "print one page of at most this many")
}

func paged(cmd *cobra.Command) bool { return cmd.Flags().Changed("limit") }

func checkLimit(cmd *cobra.Command, p cas.Page, most int) error {
	if paged(cmd) && (p.Limit < 1 || p.Limit > most) {
		return usagef("--limit is between 1 and %d", most)
	}
	return nil
}

type vaultView struct {
	Name          string     `json:"name"`
	QCS           string     `json:"qcs"`
	Created       *time.Time `json:"created"`
	LastInventory *time.Time `json:"last_inventory"`
	Archives      *int64     `json:"archives"` // as of the last inventory
	Bytes         *int64     `json:"bytes"`
}

func viewVault(v cas.VaultInfo) vaultView {
	out := vaultView{Name: v.Name, QCS: v.QCS, Created: orNull(v.CreationDate), LastInventory: orNull(v.LastInventoryDate)}
	if v.NumberOfArchives >= 0 {
		out.Archives = &v.NumberOfArchives
	}
	if v.Size >= 0 {
		out.Bytes = &v.Size
	}
	return out
}

func (a *app) vaultCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "vault", Short: "vaults: list, create, show, delete, policy, notification"}
	cmd.AddCommand(a.vaultListCmd(), a.vaultCreateCmd(), a.vaultShowCmd(), a.vaultDeleteCmd(), a.vaultPolicyCmd(), a.vaultNotificationCmd())
	return cmd
}

func (a *app) vaultListCmd() *cobra.Command {
	var page cas.Page
	cmd := a.serviceVerb("list", "list the account's vaults", 0, 0, func(cmd *cobra.Command, c *cas.Client, _ []string) error {
		if err := checkLimit(cmd, page, 1000); err != nil {
			return err
		}
		var vaults []cas.VaultInfo
		marker := page.Marker
		for {
			p, err := c.ListVaults(cmd.Context(), cas.Page{Marker: marker, Limit: page.Limit})
			if err != nil {
				return err
			}
			vaults, marker = append(vaults, p.Vaults...), p.Marker
			if marker == "" || paged(cmd) {
				break
			}
		}
		if a.json {
			views := make([]vaultView, 0, len(vaults))
			for _, v := range vaults {
				views = append(views, viewVault(v))
			}
			return a.printJSON(map[string]any{"vaults": views, "marker": marker})
		}
		t := newTable(a.out)
		t.row("VAULT", "ARCHIVES", "SIZE", "LAST INVENTORY", "CREATED")
		for _, v := range vaults {
			t.row(v.Name, archives(v), sizeText(v.Size), when(v.LastInventoryDate), when(v.CreationDate))
		}
		t.flush()
		if marker != "" {
			a.printf("more: --marker %s\n", shown(marker))
		}
		return nil
	})
	pageFlags(cmd, &page)
	a.addJSON(cmd)
	return cmd
}

func archives(v cas.VaultInfo) string {
	if v.NumberOfArchives < 0 {
		return "unknown"
	}
	return fmt.Sprint(v.NumberOfArchives)
}

func (a *app) vaultCreateCmd() *cobra.Command {
	cmd := a.vaultVerb("create VAULT", "create a vault", 0, 0, func(cmd *cobra.Command, c *cas.Client, vault string, _ []string) error {
		// To create one that is there succeeds without a difference.
		_, err := c.DescribeVault(cmd.Context(), vault)
		existed := err == nil
		location, err := c.CreateVault(cmd.Context(), vault)
		if err != nil {
			return err
		}
		switch {
		case a.json:
			return a.printJSON(map[string]any{"name": vault, "location": location, "created": !existed})
		case existed:
			a.printf("%s exists already\n", vault)
		default:
			a.printf("created %s\n", vault)
		}
		return nil
	})
	cmd.PreRun = func(*cobra.Command, []string) { a.makeStore = true }
	a.addJSON(cmd)
	return cmd
}

func (a *app) vaultShowCmd() *cobra.Command {
	cmd := a.vaultVerb("show VAULT", "describe a vault", 0, 0, func(cmd *cobra.Command, c *cas.Client, vault string, _ []string) error {
		v, err := c.DescribeVault(cmd.Context(), vault)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(viewVault(v))
		}
		t := newTable(a.out)
		t.row("vault", v.Name)
		t.row("name in policies", v.QCS)
		t.row("created", when(v.CreationDate))
		t.row("last inventory", when(v.LastInventoryDate))
		t.row("archives", archives(v)+" (as of the last inventory)")
		t.row("size", sizeAndBytes(v.Size))
		t.flush()
		return nil
	})
	a.addJSON(cmd)
	return cmd
}

func sizeAndBytes(n int64) string {
	if n < 1024 {
		return sizeText(n)
	}
	return fmt.Sprintf("%s (%d bytes)", sizeText(n), n)
}

func (a *app) vaultDeleteCmd() *cobra.Command {
	cmd := a.vaultVerb("delete VAULT", "delete an empty vault", 0, 0, func(cmd *cobra.Command, c *cas.Client, vault string, _ []string) error {
		if err := c.DeleteVault(cmd.Context(), vault); err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]string{"deleted": vault})
		}
		a.printf("deleted %s\n", vault)
		return nil
	})
	a.addJSON(cmd)
	return cmd
}

func (a *app) vaultPolicyCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "a vault's access policy: get, set, delete"}
	get := a.vaultVerb("get VAULT", "print the access policy", 0, 0, func(cmd *cobra.Command, c *cas.Client, vault string, _ []string) error {
		p, err := c.AccessPolicy(cmd.Context(), vault)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]any{"vault": vault, "policy": p})
		}
		a.printf("%s\n", strings.TrimRight(p, "\n"))
		return nil
	})
	set := a.vaultVerb("set VAULT FILE", "store the access policy in FILE (- for standard input)", 1, 1, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		text, err := readInput(args[0], 1<<20)
		if err != nil {
			return err
		}
		var compact strings.Builder
		var doc any
		if err := json.Unmarshal(text, &doc); err != nil {
			return usagef("%s: a policy is a JSON document: %v", args[0], err)
		}
		enc := json.NewEncoder(&compact)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(json.RawMessage(text)); err != nil { // compacts: the service takes no newlines
			return err
		}
		if err := c.SetAccessPolicy(cmd.Context(), vault, strings.TrimSpace(compact.String())); err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]string{"vault": vault})
		}
		a.printf("policy of %s set\n", vault)
		return nil
	})
	del := a.vaultVerb("delete VAULT", "remove the access policy", 0, 0, func(cmd *cobra.Command, c *cas.Client, vault string, _ []string) error {
		if err := c.DeleteAccessPolicy(cmd.Context(), vault); err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]string{"vault": vault})
		}
		a.printf("policy of %s removed\n", vault)
		return nil
	})
	for _, c := range []*cobra.Command{get, set, del} {
		a.addJSON(c)
		cmd.AddCommand(c)
	}
	return cmd
}

func (a *app) vaultNotificationCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "notification", Short: "a vault's callback when jobs end: get, set, delete"}
	get := a.vaultVerb("get VAULT", "print the callback", 0, 0, func(cmd *cobra.Command, c *cas.Client, vault string, _ []string) error {
		n, err := c.NotificationConfig(cmd.Context(), vault)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]any{"callback_url": n.CallBackURL, "events": n.Events})
		}
		a.printf("%s\n", shown(n.CallBackURL))
		for _, e := range n.Events {
			a.printf("  %s\n", shown(e))
		}
		return nil
	})
	var events []string
	set := a.vaultVerb("set VAULT URL", "call URL when jobs end", 1, 1, func(cmd *cobra.Command, c *cas.Client, vault string, args []string) error {
		if !strings.HasPrefix(args[0], "http://") && !strings.HasPrefix(args[0], "https://") {
			return usagef("URL begins with http:// or https://")
		}
		if err := c.SetNotification(cmd.Context(), vault, cas.Notification{CallBackURL: args[0], Events: events}); err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]string{"vault": vault})
		}
		a.printf("callback of %s set\n", vault)
		return nil
	})
	set.Flags().StringSliceVar(&events, "events", []string{"ArchiveRetrievalCompleted", "InventoryRetrievalCompleted"}, "when to call")
	del := a.vaultVerb("delete VAULT", "remove the callback", 0, 0, func(cmd *cobra.Command, c *cas.Client, vault string, _ []string) error {
		if err := c.DeleteNotification(cmd.Context(), vault); err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]string{"vault": vault})
		}
		a.printf("callback of %s removed\n", vault)
		return nil
	})
	for _, c := range []*cobra.Command{get, set, del} {
		a.addJSON(c)
		cmd.AddCommand(c)
	}
	return cmd
}

// readInput reads a small file, or standard input for "-".
func readInput(name string, most int64) ([]byte, error) {
	in := os.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s is larger than %s", name, sizeText(most))
	}
	return b, err
}
