// Package cache groups what casfs keeps on this machine's disk: journal
// (append-only records), catalog (tree, versions, archives, uploads,
// retrievals; the only user of badger) and content (staging files and local
// copies of archived bytes). The three do not know cas or fs.
package cache
