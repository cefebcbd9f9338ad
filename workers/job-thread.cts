/**
 * What the pool loads in a thread: the way to `job-worker`, which is a module.
 *
 * Invariants:
 * - Nothing is loaded by `require` but this file. The pool requires what it is given, and Node.js 20
 *   ends the whole process when a thread is ended while it requires a module (`IsGraphAsync must be
 *   used on an instantiated module`); an `import` that is cut off harms nobody.
 */
type JobWorker = typeof import('./job-worker.ts', { with: { 'resolution-mode': 'import' }})
type Run = JobWorker['run']

const worker: Promise<JobWorker> = import('./job-worker.ts')

/** What the pool calls. */
const run: Run = async (task) => (await worker).run(task)

Object.assign(exports, { run })
