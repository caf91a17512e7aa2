"""Forms of linear operators: convolutions of every kind, matrices wherever they stand."""

from __future__ import annotations

from tests.forms.form import Form, one, text

_CONV5 = "float[5,4,3,3] w"

CONVOLUTIONS = {
    "rank 1": Form(
        one("[n] z = Conv <strides = [2]> (x, w)", "float[5,4,3] w", "float[N,4,9]", "float[N,A,B]")
    ),
    "rank 3": Form(
        one("[n] z = Conv (x, w)", "float[5,4,2,2,2] w", "float[N,4,3,4,3]", "float[N,A,B,C,D]")
    ),
    "grouped": Form(one("[n] z = Conv <group = 2> (x, w)", "float[6,2,3,3] w")),
    "depthwise": Form(one("[n] z = Conv <group = 4> (x, w)", "float[8,1,3,3] w")),
    "dilated": Form(one("[n] z = Conv <dilations = [2,1], pads = [2,0,2,0]> (x, w)", _CONV5)),
    "SAME_UPPER": Form(
        one('[n] z = Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (x, w)', _CONV5)
    ),
    "SAME_LOWER": Form(
        one('[n] z = Conv <auto_pad = "SAME_LOWER", strides = [2,2]> (x, w)', _CONV5)
    ),
    "VALID": Form(one('[n] z = Conv <auto_pad = "VALID"> (x, w)', _CONV5)),
    "ConvTranspose": Form(
        one(
            "[n] z = ConvTranspose <strides = [2,2], group = 2> (x, w, b)",
            "float[4,3,3,3] w, float[6] b",
        )
    ),
}

MATRICES = {
    "Gemm, transB, alpha and beta": Form(
        one(
            "[n] z = Gemm <transB = 1, alpha: float = 0.5, beta: float = 2.0> (x, w, b)",
            "float[5,4] w, float[1,5] b",
            "float[N,4]",
            "float[N,A]",
        )
    ),
    "Gemm, transA": Form(
        text(
            """g (float[N,4] x) => (float[N,5] z) <float[4,4] k, float[4,5] w> {
                [one] y = Gemm (x, k)
                t = Transpose <perm = [1,0]> (y)
                [two] z = Gemm <transA = 1> (t, w)
            }"""
        )
    ),
    "MatMul and Add": Form(
        one(
            "[n] h = MatMul (x, w) z = Add (b, h)",
            "float[4,5] w, float[5] b",
            "float[N,4]",
            "float[N,A]",
        )
    ),
    "MatMul of rank 4": Form(
        one("[n] h = MatMul (x, w) z = Add (h, b)", "float[6,5] w, float[5] b")
    ),
    "a weight on the left": Form(
        text(
            """g (float[N,6,4] x) => (float[N,5,3] z) <float[5,6] k, float[4,3] w> {
                [left] y = MatMul (k, x)
                [right] z = MatMul (y, w)
            }"""
        )
    ),
    "attention": Form(
        text(
            """g (float[N,5,8] x) => (float[N,5,8] z)
            <float[8,8] wq, float[8] bq, float[8,8] wk, float[8,8] wv, float[8] bv, float[8,8] wo,
             float[8] bo, int64[4] split = {0,0,2,4}, int64[3] join = {0,0,8},
             float scale = {0.5}> {
                [q] hq = MatMul (x, wq)
                aq = Add (hq, bq)
                sq = Mul (aq, scale)
                [k] hk = MatMul (x, wk)
                [v] hv = MatMul (x, wv)
                av = Add (hv, bv)
                rq = Reshape (sq, split)
                rk = Reshape (hk, split)
                rv = Reshape (av, split)
                q = Transpose <perm = [0,2,1,3]> (rq)
                k = Transpose <perm = [0,2,3,1]> (rk)
                v = Transpose <perm = [0,2,1,3]> (rv)
                scores = MatMul (q, k)
                p = Softmax <axis = -1> (scores)
                o = MatMul (p, v)
                t = Transpose <perm = [0,2,1,3]> (o)
                c = Reshape (t, join)
                [o] ho = MatMul (c, wo)
                ao = Add (ho, bo)
                z = Add (ao, x)
            }"""
        )
    ),
    "tokens joined with the batch": Form(
        text(
            """g (float[N,3,4] x) => (float[N,3,5] z)
            <float[4,5] w, float[5] b, int64[2] flat = {-1,4}, int64[3] back = {-1,3,5}> {
                f = Reshape (x, flat)
                [n] y = Gemm (f, w, b)
                z = Reshape (y, back)
            }"""
        )
    ),
    "LSTM": Form(
        text(
            """g (float[N,5,3] x) => (float[N,5] z)
            <float[1,16,3] w, float[1,16,4] r, float[4,5] k, int64[1] first = {0}> {
                t = Transpose <perm = [1,0,2]> (x)
                [lstm] all, last = LSTM <hidden_size = 4> (t, w, r)
                h = Squeeze (last, first)
                [fc] z = MatMul (h, k)
            }"""
        )
    ),
}
