package local

import (
	"bytes"
	"encoding/hex"
	"io"
	"testing"
)

func nothing(int64, []byte, bool) error { return nil }

func TestTreeHashVectors(t *testing.T) {
	for _, v := range []struct {
		n            int
		linear, tree string
	}{
		{1, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d", ""},
		{1048575, "8b55c6a2d3444092a316985030e00c1e6f8608eaf912c896dee7c374d440ed11", ""},
		{1048576, "631b84027d6b9e52b539c4e8373622d23032dfadc64d60af87339c9037e4f769", ""},
		{1048577, "5769f52bc3eef28afa39c6fc68cadb7d0bd69812ae3a3d71452f519ec3c7aa56", "a9c574ce937d2371daf87cdd0e75396b096d7f74a66c764e4c656bd12b2e7bf9"},
		{2097152, "1e075c8d478ad21844e33e830a695ef03a4d2488b69ee275bd8947618bb1be1e", "bf4dff263ae686b64403208c35a3767e38453d6477e841947588d13d04e1d816"},
		{3145728, "a1feacf0d812ba4d0b0e463ed45bbd583cea1de55c54693116754b30b5794745", "2e7d51c0ffe06ce95fe74beed9a4ab35d18837f4ab2a9f4f066a60359eb999a1"},
		{5242887, "d711f6eaa60f8a7f09186ff7fdf7d182b7e58dce9fce38b1e070ef085c0a7b27", "39119a173a11e05648146d51f35437d6960dcfe76ddd40b818dce8fedcef76e3"},
		{7340032, "c0c49a419ecae55243613a85dc1e1cb5ec9d5a51d5f439a8c16eb7ff0b139920", "8bfce57c6a4076b3e930e725fbaa00beeffff0f0d9a6491a89a53baa73b4810d"},
		{16777216, "287507f403176f1f5b22b9a4d9cb49f7d7f88ac19e406b5ae87ce109564846bd", "fe8d5faa139c80676b882005e2aa820ef7ea5673b292a62850f1336d9ee604a2"},
		{16777217, "4f0d26681f3c27a767c8e643f3ab9208de29d96ca7119774c559d27cfa4697f8", "395c8eef3b1dd569b7af87d4e9d75656da53aa2f014cfbb60a9e6112cf65922f"},
		{41955385, "6337502eb74980a5d5933f8263e3a5f3c59ec2376a2942d140fdde493925919e", "554e388c7758215f0aaf85bf927849e9cd5ead36cd07f83a2fda44e1e9a155d7"},
	} {
		if v.tree == "" {
			v.tree = v.linear
		}
		got, err := receive(bytes.NewReader(pattern(v.n)), int64(v.n), nothing)
		if err != nil || got.linear.String() != v.linear || got.tree.String() != v.tree {
			t.Errorf("%d: %s %s %v", v.n, got.linear, got.tree, err)
		}
		if root := rootOf(got.leaves); root != got.tree || int64(len(got.leaves)) != leafCount(int64(v.n)) {
			t.Errorf("%d: %d leaves with root %s", v.n, len(got.leaves), root)
		}
	}
}

func TestCombine(t *testing.T) {
	parts := func(n, size int) digest {
		b := pattern(n)
		var nodes []digest
		for off := 0; off < n; off += size {
			d, _ := parseDigest(naiveTree(b[off:min(off+size, n)]))
			nodes = append(nodes, d)
		}
		return rootOf(nodes)
	}
	for _, v := range []struct {
		n, part int
		want    string
	}{
		{41955385, 16 << 20, "554e388c7758215f0aaf85bf927849e9cd5ead36cd07f83a2fda44e1e9a155d7"},
		{5242887, 1 << 20, "39119a173a11e05648146d51f35437d6960dcfe76ddd40b818dce8fedcef76e3"},
		{5242887, 2 << 20, "39119a173a11e05648146d51f35437d6960dcfe76ddd40b818dce8fedcef76e3"},
		{5242887, 4 << 20, "39119a173a11e05648146d51f35437d6960dcfe76ddd40b818dce8fedcef76e3"},
		{7340032, 3 << 20, "ac9810f4b2b7ab6c3dac50c22819c44aeff26a57e3c9606eb1a141cf8488d750"},
	} {
		if got := parts(v.n, v.part); got.String() != v.want {
			t.Errorf("%d in %d: %s", v.n, v.part, got)
		}
	}
	if got := parts(5242887, 3<<20).String(); got[:8] != "97fc4172" {
		t.Error(got)
	}
}

// Zero chunks are hashed by a constant.
func TestZeroChunks(t *testing.T) {
	b := make([]byte, 3<<20+5)
	b[2<<20] = 1
	var zeros []int64
	got, err := receive(bytes.NewReader(b), int64(len(b)), func(off int64, p []byte, zero bool) error {
		if zero {
			zeros = append(zeros, off)
		}
		return nil
	})
	if err != nil || got.tree.String() != naiveTree(b) || got.linear.String() != linearHex(b) {
		t.Errorf("%v %v", got, err)
	}
	if len(zeros) != 2 || zeros[1] != 1<<20 {
		t.Errorf("zero chunks at %v", zeros)
	}
}

func TestReceiveShort(t *testing.T) {
	for _, n := range []int64{0, 5, 1 << 20} {
		if _, err := receive(io.LimitReader(zeros{}, n), 3<<20, nothing); asAPIError(err).status != 400 {
			t.Errorf("%d: %v", n, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A range is aligned exactly when it is a node of the tree, found here by
// building every node.
func TestTreeAligned(t *testing.T) {
	for n := int64(1); n < 40; n++ {
		for _, tail := range []int64{0, 7} {
			size := n*mib - tail
			type span struct{ p, q int64 }
			nodes := map[span]bool{}
			var level []span
			for i := range n {
				level = append(level, span{i, i + 1})
			}
			for {
				for _, s := range level {
					nodes[s] = true
				}
				if len(level) == 1 {
					break
				}
				var next []span
				for i := 0; i < len(level); i += 2 {
					if i+1 < len(level) {
						next = append(next, span{level[i].p, level[i+1].q})
					} else {
						next = append(next, level[i])
					}
				}
				level = next
			}
			for p := range n {
				for q := p + 1; q <= n; q++ {
					if got, want := treeAligned(p*mib, min(q*mib, size), size), nodes[span{p, q}]; got != want {
						t.Errorf("%d chunks, %d-%d: %v, want %v", n, p, q, got, want)
					}
				}
			}
		}
	}
	for _, x := range [][3]int64{{-mib, mib, mib}, {0, 0, mib}, {0, mib + 1, 2 * mib}, {1, mib, mib}, {0, 2 * mib, mib}, {mib, mib, mib}} {
		if treeAligned(x[0], x[1], x[2]) {
			t.Errorf("%v is not aligned", x)
		}
	}
}

func TestDigestText(t *testing.T) {
	d, ok := parseDigest("ABCDEF0123456789abcdef0123456789ABCDEF0123456789abcdef0123456789")
	if !ok || d.String() != "abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789" {
		t.Error(d, ok)
	}
	for _, s := range []string{"", "00", "g" + hex.EncodeToString(make([]byte, 31)) + "0", hex.EncodeToString(make([]byte, 33))} {
		if _, ok := parseDigest(s); ok {
			t.Errorf("accepted %q", s)
		}
	}
}
