package fs

import (
	fusefs "github.com/hanwen/go-fuse/v2/fs"

	"github.com/casfs/casfs/jobs"
)

// What is implemented. A misspelt method would silently be "not supported".
var (
	_ fusefs.NodeGetattrer     = (*node)(nil)
	_ fusefs.NodeSetattrer     = (*node)(nil)
	_ fusefs.NodeStatfser      = (*node)(nil)
	_ fusefs.NodeGetxattrer    = (*node)(nil)
	_ fusefs.NodeSetxattrer    = (*node)(nil)
	_ fusefs.NodeRemovexattrer = (*node)(nil)
	_ fusefs.NodeListxattrer   = (*node)(nil)
	_ fusefs.NodeOnForgetter   = (*node)(nil)

	_ fusefs.NodeLookuper       = (*dirNode)(nil)
	_ fusefs.NodeCreater        = (*dirNode)(nil)
	_ fusefs.NodeTmpfiler       = (*dirNode)(nil)
	_ fusefs.NodeMkdirer        = (*dirNode)(nil)
	_ fusefs.NodeMknoder        = (*dirNode)(nil)
	_ fusefs.NodeSymlinker      = (*dirNode)(nil)
	_ fusefs.NodeLinker         = (*dirNode)(nil)
	_ fusefs.NodeUnlinker       = (*dirNode)(nil)
	_ fusefs.NodeRmdirer        = (*dirNode)(nil)
	_ fusefs.NodeRenamer        = (*dirNode)(nil)
	_ fusefs.NodeOpendirHandler = (*dirNode)(nil)

	_ fusefs.FileReaddirenter = (*dirHandle)(nil)
	_ fusefs.FileSeekdirer    = (*dirHandle)(nil)
	_ fusefs.FileLookuper     = (*dirHandle)(nil)
	_ fusefs.FileReleasedirer = (*dirHandle)(nil)
	_ fusefs.FileFsyncdirer   = (*dirHandle)(nil)

	_ fusefs.NodeOpener         = (*fileNode)(nil)
	_ fusefs.NodeCopyFileRanger = (*fileNode)(nil)
	_ fusefs.NodeReadlinker     = (*linkNode)(nil)
	_ inode                     = (*specialNode)(nil)

	_ fusefs.FileReader    = (*fileHandle)(nil)
	_ fusefs.FileWriter    = (*fileHandle)(nil)
	_ fusefs.FileFlusher   = (*fileHandle)(nil)
	_ fusefs.FileFsyncer   = (*fileHandle)(nil)
	_ fusefs.FileAllocater = (*fileHandle)(nil)
	_ fusefs.FileLseeker   = (*fileHandle)(nil)

	_ jobs.Observer = (*notifier)(nil)
)
