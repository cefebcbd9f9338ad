/** Types of the wall checks. */
export declare const LAYERS: Readonly<Record<string, readonly string[]>>
/** All findings over files (path relative to the project → text). */
export declare function checkWalls(files: ReadonlyMap<string, string>): string[]
/** The room of a path. */
export declare function roomOf(path: string): string | undefined
/** Text without comments, and with `strings` without strings. */
export declare function blank(text: string, strings: boolean): string
/** The judged files of a project folder. */
export declare function readTree(root: string): Map<string, string>
