/**
 * Guest clusters that one request works on while others wait.
 *
 * Invariants:
 * - Two claims of one image never overlap.
 */

/** A claimed range of guest bytes, in whole clusters. */
export interface Claim {
  readonly from: number
  readonly to: number
  /** Fulfilled when the claim is given up. */
  readonly ended: Promise<void>
}

/** The claims of one image. */
export class Claims {
  #all: Claim[] = []

  /** There are some. */
  get any(): boolean {
    return this.#all.length > 0
  }

  /** A claim that touches [from, to). */
  conflict(from: number, to: number): Claim | undefined {
    return this.#all.find((claim) => claim.from < to && from < claim.to)
  }

  /** Claims [from, to), in which there is no conflict; the answer gives it up. */
  claim(from: number, to: number): () => void {
    let release: () => void = () => undefined
    const ended = new Promise<void>((resolve) => {
      release = resolve
    })
    const claim: Claim = { from, to, ended }
    this.#all.push(claim)
    return () => {
      this.#all = this.#all.filter((other) => other !== claim)
      release()
    }
  }
}
