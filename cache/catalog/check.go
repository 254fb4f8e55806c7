package catalog

import "context"

// Check compares badger with snapshot and journal and the tree with itself
// (dangling entries, wrong nlink, versions without inode …), reporting each problem; repair mends what loses nothing.
func (c *Catalog) Check(ctx context.Context, repair bool, report func(problem string)) error {
	panic("unimplemented")
}
