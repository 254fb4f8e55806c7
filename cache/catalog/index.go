package catalog

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// memTable is the size of badger's tables in memory, of which it has two.
const memTable = 8 << 20

// indexOptions keep badger small. Syncing is the journal's business, and a
// single committer has no conflicts. Checksums of whole tables are the mark's business (sumIndex): badger would look
// at every page through its maps, and hold the whole index in memory after each start.
func indexOptions(dir string, log *slog.Logger) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(badgerLog{log}).
		WithSyncWrites(false).
		WithDetectConflicts(false).
		WithMemTableSize(memTable).
		WithNumMemtables(2).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(4).
		WithNumCompactors(2).
		WithValueThreshold(512 << 10). // above maxValue: nothing ever goes to the value log
		WithValueLogFileSize(64 << 20).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithBaseTableSize(512 << 10). // the largest are 32 times as large, and are built in memory
		WithIndexCacheSize(16 << 20).
		WithMetricsEnabled(false).
		WithChecksumVerificationMode(options.NoVerification).
		WithNumGoroutines(1)
}

// openIndex opens badger; its panics over damaged files become errors.
func openIndex(dir string, log *slog.Logger, noCompaction bool) (db *badger.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, fmt.Errorf("badger panics: %v", p)
		}
	}()
	opt := indexOptions(dir, log)
	if noCompaction {
		opt = opt.WithNumCompactors(0).WithNumLevelZeroTables(1 << 10).WithNumLevelZeroTablesStall(1 << 11)
	}
	return badger.OpenManaged(opt)
}

func closeIndex(db *badger.DB) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("badger panics: %v", p)
		}
	}()
	return db.Close()
}

// badgerLog passes on what somebody may have to act on.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) Errorf(f string, a ...any) { l.log.Error("badger: " + message(f, a)) }

func (l badgerLog) Warningf(f string, a ...any) { l.log.Warn("badger: " + message(f, a)) }

func (l badgerLog) Infof(f string, a ...any) { l.log.Debug("badger: " + message(f, a)) }

func (l badgerLog) Debugf(string, ...any) {}

func message(f string, a []any) string { return strings.TrimSpace(fmt.Sprintf(f, a...)) }

// readState returns what an index says of itself.
func readState(db *badger.DB) (s state, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("badger panics: %v", p)
		}
	}()
	txn := db.NewTransactionAt(1<<64-1, false)
	defer txn.Discard()
	item, err := txn.Get(stateKey)
	if err != nil {
		return s, err
	}
	err = item.Value(func(b []byte) error {
		s, err = decodeState(b)
		return err
	})
	return s, err
}
